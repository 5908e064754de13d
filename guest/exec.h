/* Commands: core.exec.* */
#ifndef EXEC_H
#define EXEC_H

#include "agent.h"

/* Returns NULL, or why the request cannot be read; everything else is answered. */
const char *exec_start(struct agent *, uint32_t id, struct cbor *payload);
/* SIGTERM to every command. Returns how many there are. */
unsigned exec_terminate_all(struct agent *);
unsigned exec_count(struct agent *);

#endif
