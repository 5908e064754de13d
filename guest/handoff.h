/* PID 1 for a program of the image: see handoff.c. */
#ifndef HANDOFF_H
#define HANDOFF_H

#include "agent.h"
#include "boot_config.h"

/*
 * The calling process becomes the init; this returns in a child, which goes on as the agent. A program that
 * does not exist or cannot be executed ends the boot.
 */
void hand_off(struct agent *, const struct boot_init *);

/* Asks the init to power the machine off, and returns if it did not within its time. */
void stop_init(struct agent *);

#endif
