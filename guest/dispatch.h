/* What each message of the host means. */
#ifndef DISPATCH_H
#define DISPATCH_H

#include "agent.h"

void dispatch(struct agent *, const struct frame *);

#endif
