/* The environment of a command: see exec_env.h. */
#include "exec_env.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_VARIABLES = 8192 };

#define SCRIPTS "/.msb/scripts"

/* A later entry takes the place of one with the same name; what is no "K=V" is left out. */
static void set_variable(struct list *env, char *entry)
{
    const char *equals = strchr(entry, '=');
    if (equals == NULL || equals == entry)
        return;
    size_t length = (size_t)(equals - entry) + 1;
    for (size_t i = 0; i < env->count; i++) {
        if (strncmp(env->items[i], entry, length) == 0) {
            env->items[i] = entry;
            return;
        }
    }
    list_add(env, entry, MAX_VARIABLES);
}

static char *find_variable(const struct list *env, const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < env->count; i++)
        if (strncmp(env->items[i], name, length) == 0)
            return env->items[i] + length;
    return NULL;
}

/* PATH with the sandbox's scripts in front; NULL when there is no memory or they are there already. */
static char *path_with_scripts(const struct list *env)
{
    const char *path = find_variable(env, "PATH=");
    size_t length = strlen(SCRIPTS);
    if (path == NULL)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    if (strncmp(path, SCRIPTS, length) == 0 && (path[length] == ':' || path[length] == '\0'))
        return NULL;
    size_t size = strlen("PATH=" SCRIPTS ":") + strlen(path) + 1;
    char *entry = malloc(size);
    if (entry != NULL)
        snprintf(entry, size, "PATH=" SCRIPTS ":%s", path);
    return entry;
}

struct list exec_environment(char **sandbox, char *home, char **command, char **path)
{
    struct list env = {NULL, 0, 0, false};
    for (char **entry = sandbox; entry != NULL && *entry != NULL; entry++)
        set_variable(&env, *entry);
    set_variable(&env, home);
    for (char **entry = command; entry != NULL && *entry != NULL; entry++)
        set_variable(&env, *entry);
    *path = path_with_scripts(&env);
    if (*path != NULL)
        set_variable(&env, *path);
    return env;
}
