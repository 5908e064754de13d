/* Failures of commands: kinds, names of errors and messages. */
#include "exec_failure.h"

#include <errno.h>
#include <stdio.h>

enum { MAX_MESSAGE = 512 };

static const struct {
    int number;
    const char *name, *kind;
} errors[] = {
    {ENOENT, "ENOENT", "not_found"},
    {ENOTDIR, "ENOTDIR", "bad_cwd"},
    {EACCES, "EACCES", "permission_denied"},
    {EPERM, "EPERM", "permission_denied"},
    {ENOEXEC, "ENOEXEC", "not_executable"},
    {EISDIR, "EISDIR", "not_executable"},
    {ETXTBSY, "ETXTBSY", "not_executable"},
    {E2BIG, "E2BIG", "bad_args"},
    {ELOOP, "ELOOP", "bad_args"},
    {ENAMETOOLONG, "ENAMETOOLONG", "bad_args"},
    {EFAULT, "EFAULT", "bad_args"},
    {EMFILE, "EMFILE", "resource_limit"},
    {ENFILE, "ENFILE", "resource_limit"},
    {EAGAIN, "EAGAIN", "resource_limit"},
    {ENOMEM, "ENOMEM", "out_of_memory"},
    {EBUSY, "EBUSY", "other"},
    {EINVAL, "EINVAL", "other"},
    {EIO, "EIO", "other"},
    {ENOSYS, "ENOSYS", "other"},
    {ENXIO, "ENXIO", "other"},
    {EPIPE, "EPIPE", "other"},
    {EBADF, "EBADF", "other"},
    {ENOSPC, "ENOSPC", "other"},
    {EFBIG, "EFBIG", "other"},
    {ENOBUFS, "ENOBUFS", "other"},
};

static const char *error_name(int number)
{
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].number == number)
            return errors[i].name;
    return NULL;
}

const char *exec_error_kind(int number)
{
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].number == number)
            return errors[i].kind;
    return "other";
}

/* errno and errno_name, for a map that has room for both. */
static void put_errno(struct cbor_out *put, int number)
{
    const char *name = error_name(number);
    cbor_put_text(put, "errno");
    if (number != 0)
        cbor_put_int(put, number);
    else
        cbor_put_null(put);
    cbor_put_text(put, "errno_name");
    if (name != NULL)
        cbor_put_text(put, name);
    else
        cbor_put_null(put);
}

void exec_failed(struct agent *agent, uint32_t id, const char *kind, int number, const char *stage,
                 const char *message)
{
    struct cbor_out put = wire_begin(&agent->wire, id, MSG_EXEC_FAILED);
    cbor_put_map(&put, stage != NULL ? 5 : 4);
    cbor_put_text(&put, "kind");
    cbor_put_text(&put, kind);
    put_errno(&put, number);
    cbor_put_text(&put, "message");
    cbor_put_text(&put, message);
    if (stage != NULL) {
        cbor_put_text(&put, "stage");
        cbor_put_text(&put, stage);
    }
    wire_end(&agent->wire, &put);
}

void exec_spawn_failed(struct agent *agent, uint32_t id, const struct exec_request *request, const char *kind,
                       int number, const char *stage, const char *detail)
{
    char message[MAX_MESSAGE];
    snprintf(message, sizeof message, "spawn \"%.200s\": %s", request->argv[0], detail);
    exec_failed(agent, id, kind, number, stage, message);
}

void exec_stage_failed(struct agent *agent, uint32_t id, const struct exec_request *request,
                       const struct spawn *spawn)
{
    struct os_error error = os_error(spawn->error);
    const char *kind = exec_error_kind(spawn->error), *stage = request->tty ? "execvp" : "Command::spawn";
    char detail[MAX_MESSAGE];

    snprintf(detail, sizeof detail, "%s", error.text);
    switch (spawn->stage) {
    case SPAWN_CLONE:
        stage = "fork";
        break;
    case SPAWN_SESSION:
    case SPAWN_STDIO:
        stage = "stdio";
        break;
    case SPAWN_TERMINAL:
        kind = "pty_setup_failed";
        stage = "setctty";
        break;
    case SPAWN_CWD:
        kind = "bad_cwd";
        stage = "chdir";
        snprintf(detail, sizeof detail, "working directory \"%.200s\": %s", request->cwd, error.text);
        break;
    case SPAWN_PROFILE:
        stage = "security profile";
        snprintf(detail, sizeof detail, "security profile: %s", error.text);
        break;
    case SPAWN_LIMITS:
        stage = "setrlimit";
        snprintf(detail, sizeof detail, "resource limits: %s", error.text);
        break;
    case SPAWN_GROUPS:
    case SPAWN_USER:
        kind = "user_setup_failed";
        stage = spawn->stage == SPAWN_USER ? "setuid" : "setgroups";
        snprintf(detail, sizeof detail, "user \"%.100s\": %s", request->user != NULL ? request->user : "",
                 error.text);
        break;
    case SPAWN_EXEC:
        /* Also what the loader of the program reports; the directory was entered before. */
        if (spawn->error == ENOTDIR)
            kind = "not_found";
        break;
    }
    exec_spawn_failed(agent, id, request, kind, spawn->error, stage, detail);
}

void exec_input_failed(struct agent *agent, uint32_t id, int number)
{
    char message[MAX_MESSAGE];
    snprintf(message, sizeof message, "write stdin: %s", os_error(number).text);
    struct cbor_out put = wire_begin(&agent->wire, id, MSG_EXEC_STDIN_ERROR);
    cbor_put_map(&put, 3);
    put_errno(&put, number);
    cbor_put_text(&put, "message");
    cbor_put_text(&put, message);
    wire_end(&agent->wire, &put);
}
