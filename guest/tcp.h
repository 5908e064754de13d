/* TCP streams from inside the guest: core.tcp.* */
#ifndef TCP_H
#define TCP_H

#include "agent.h"

/* Returns NULL, or why the request cannot be read; everything else is answered. */
const char *tcp_start(struct agent *, uint32_t id, struct cbor *payload);
/* A message for an id that has no session. */
void tcp_refuse(struct agent *, uint32_t id, enum message);

#endif
