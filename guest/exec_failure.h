/* Why a command did not start, or takes no input, in the protocol's words. */
#ifndef EXEC_FAILURE_H
#define EXEC_FAILURE_H

#include "agent.h"
#include "exec_request.h"
#include "spawn.h"

/* core.exec.failed; `number` 0 and `stage` NULL when there is none. */
void exec_failed(struct agent *, uint32_t id, const char *kind, int number, const char *stage,
                 const char *message);
/* The same, with the name of the command in front. */
void exec_spawn_failed(struct agent *, uint32_t id, const struct exec_request *, const char *kind, int number,
                       const char *stage, const char *detail);
/* What spawn_command() has found. */
void exec_stage_failed(struct agent *, uint32_t id, const struct exec_request *, const struct spawn *);
/* core.exec.stdin.error */
void exec_input_failed(struct agent *, uint32_t id, int number);
/* The kind that an error number belongs to. */
const char *exec_error_kind(int number);

#endif
