/* The environment of a command. */
#ifndef EXEC_ENV_H
#define EXEC_ENV_H

#include "strlist.h"

/*
 * The sandbox's variables, `home` ("HOME=..."), the command's own; a later one takes the place of an earlier
 * one with the same name. PATH begins with the sandbox's scripts. Both lists may be NULL; the strings must
 * outlive the environment. `*path` is to be freed with its items.
 */
struct list exec_environment(char **sandbox, char *home, char **command, char **path);

#endif
