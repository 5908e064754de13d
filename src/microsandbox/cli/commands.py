"""The command tree of ``msb``: every command, option and argument, in the order of the help."""

from __future__ import annotations

from microsandbox.cli import values
from microsandbox.cli.model import Argument, Arity, Command, Option, Stage
from microsandbox.cli.sandbox_options import CREATION, IDENTITY, later

_SANDBOXES, _IMAGES, _OTHER = "Sandboxes", "Images", "Other"

_QUIET = Option("quiet", "q", help="Show no progress")
_NAMES_ONLY = Option("quiet", "q", help="Print names only")
_FORCE_REMOVE = Option("force", "f", help="Remove it even when it is in use")
_LABEL = Option(
    "label",
    None,
    "KEY[=VALUE]",
    "Sandboxes with this label, too; repeated: with all of them",
    True,
    values.label,
)
_FILTER = Option("label", None, "KEY[=VALUE]", "Only sandboxes with this label", True, values.label)
_FORMAT = Option("format", None, "FORMAT", "Output format: json", convert=values.one_of("format", "json"))
_NAMES = (Argument("NAME", Arity.MANY, "Sandboxes"),)
_REFERENCES = (Argument("REFERENCE", Arity.SOME, "Images"),)
_REFERENCE = (Argument("REFERENCE", Arity.ONE, "Image, e.g. alpine:3.20"),)

#: How a command is run, for `run` and `exec`.
_TTY = Option("tty", "t", help="Give the command a terminal")
_TIMEOUT = Option("timeout", None, "DURATION", "Kill the command after that long", convert=values.duration)
_RLIMIT = Option("rlimit", None, "RESOURCE=SOFT[:HARD]", "Resource limit of the command", True, values.rlimit)
_DETACH_KEYS = Option(
    "detach-keys", None, "SPEC", "Keys that leave an interactive session", convert=values.detach_keys
)

_LOGS_OPTIONS = (
    Option("tail", None, "N", "Only the last N entries", convert=values.entries),
    Option("since", None, "TIME", "From this time on: RFC 3339, or an age like 5m", convert=values.moment),
    Option("until", None, "TIME", "Before this time", convert=values.moment),
    Option("follow", "f", help="Go on until the sandbox stops"),
    Option("timestamps", help="Show when each entry was printed"),
    Option(
        "source",
        None,
        "SOURCE,...",
        "stdout, stderr, output (of terminals), system, all",
        convert=values.log_sources,
    ),
    Option("grep", None, "REGEX", "Only entries in which this is found", convert=values.regex),
    Option("json", help="One JSON object a line"),
    Option(
        "color",
        None,
        "WHEN",
        "auto, always or never",
        convert=values.one_of("color", "auto", "always", "never"),
    ),
    Option("no-color", help="The same as --color never"),
    Option("show-id", help="Show which command an entry is of"),
    Option("color-sessions", help="The same, each command in its colour"),
)

_PULL_OPTIONS = (
    Option("force", "f", help="Download again"),
    _QUIET,
    Option("insecure", help="Use plain HTTP for this registry"),
    Option("ca-certs", None, "PATH", "Trust the certificates in this file as well"),
)
_LOAD_OPTIONS = (
    Option("input", "i", "PATH", "Archive to read (default: standard input)"),
    Option("tag", "t", "REFERENCE", "Name for the first image of the archive", True),
    _QUIET,
    Option("format", None, "FORMAT", "Output format: json", convert=values.one_of("format", "json")),
)
_PULL = Command(
    "pull", "Download an image", "images:pull", _IMAGES, arguments=_REFERENCE, options=_PULL_OPTIONS
)
_LOAD = Command("load", "Load images from an archive", "images:load", _IMAGES, options=_LOAD_OPTIONS)
_IMAGE_LIST_OPTIONS = (_FORMAT, Option("quiet", "q", help="Print references only"))

_IMAGE = Command(
    "image",
    "Manage images",
    heading=_IMAGES,
    subcommands=(
        _PULL,
        Command("list", "List images", "images:list_images", aliases=("ls",), options=_IMAGE_LIST_OPTIONS),
        Command("inspect", "Show an image", "images:inspect", arguments=_REFERENCE, options=(_FORMAT,)),
        _LOAD,
        Command("save", "", stage=Stage.LATER),
        Command(
            "remove",
            "Remove images",
            "images:remove",
            aliases=("rm",),
            arguments=_REFERENCES,
            options=(_FORCE_REMOVE, _QUIET),
        ),
        Command(
            "prune",
            "Remove images no sandbox uses",
            "images:prune",
            options=(Option("yes", "y", help="Do not ask"), _FORMAT, _QUIET),
        ),
    ),
)

_TEMPLATE = Command(
    "template",
    "Manage memory templates",
    heading=_OTHER,
    subcommands=(
        Command(
            "list",
            "List memory templates",
            "templates:list_templates",
            aliases=("ls",),
            options=(_FORMAT, Option("quiet", "q", help="Print ids only")),
        ),
        Command(
            "build",
            "Build what sandboxes start from",
            "templates:build",
            arguments=(Argument("IMAGE", Arity.OPTIONAL, "Image to have mounted"),),
            options=(
                Option("cpus", "c", "N", "Virtual CPUs", convert=values.count),
                Option("memory", "m", "SIZE", "Memory, e.g. 512M or 1G", convert=values.size),
                _FORMAT,
                _QUIET,
            ),
        ),
        Command(
            "remove",
            "Remove memory templates",
            "templates:remove",
            aliases=("rm",),
            arguments=(Argument("ID", Arity.MANY, "Templates: ids, or how they start"),),
            options=(Option("all", help="Remove every template"), _QUIET),
            exclusive=(("id", "all"),),
        ),
    ),
)

_LATER_COMMANDS = (
    ("copy", ("cp",)), ("ssh", ()), ("save", ()), ("registry", ()),
    ("volume", ("vol",)), ("snapshot", ("snap",)), ("install", ()), ("uninstall", ()), ("self", ()),
)  # fmt: skip

ROOT = Command(
    "msb",
    "Virtual machines as sandboxes",
    subcommands=(
        Command(
            "run",
            "Run a command in a sandbox",
            "run:run",
            _SANDBOXES,
            arguments=(Argument("IMAGE", Arity.OPTIONAL, "Image reference"),),
            options=(
                Option("detach", "d", help="Start it in the background and print its name"),
                _TTY,
                _TIMEOUT,
                _RLIMIT,
                Option("timings", help="Show afterwards where the time went"),
                *IDENTITY,
                *CREATION,
                later("snapshot", None, "PATH_OR_NAME"),
                _DETACH_KEYS,
            ),
            trailing=True,
            exclusive=(
                ("detach", "tty"),
                ("detach", "timeout"),
                ("detach", "rlimit"),
                ("detach", "timings"),
                ("detach", "detach_keys"),
            ),
        ),
        Command(
            "create",
            "Create a sandbox and boot it in the background",
            "create:create",
            _SANDBOXES,
            arguments=(Argument("IMAGE", Arity.ONE, "Image reference"),),
            options=(*IDENTITY, *CREATION),
        ),
        Command(
            "start",
            "Start stopped sandboxes",
            "lifecycle:start",
            _SANDBOXES,
            arguments=_NAMES,
            options=(_LABEL, _QUIET),
        ),
        Command(
            "stop",
            "Stop sandboxes",
            "lifecycle:stop",
            _SANDBOXES,
            arguments=_NAMES,
            options=(
                _LABEL,
                Option("force", "f", help="Kill at once"),
                Option("timeout", "t", "SECONDS", "Kill after that many seconds", convert=values.seconds),
                _QUIET,
            ),
        ),
        Command(
            "pause",
            "Pause running sandboxes",
            "lifecycle:pause",
            _SANDBOXES,
            arguments=_NAMES,
            options=(_LABEL, _QUIET),
        ),
        Command(
            "resume",
            "Resume paused sandboxes",
            "lifecycle:resume",
            _SANDBOXES,
            arguments=_NAMES,
            options=(_LABEL, _QUIET),
        ),
        Command(
            "list",
            "List sandboxes",
            "listing:list_sandboxes",
            _SANDBOXES,
            aliases=("ls",),
            options=(
                Option("running", help="Only running ones"),
                Option("stopped", help="Only stopped ones"),
                _FILTER,
                _FORMAT,
                _NAMES_ONLY,
            ),
            exclusive=(("running", "stopped"),),
        ),
        Command(
            "status",
            "Show running sandboxes",
            "listing:status",
            _SANDBOXES,
            aliases=("ps",),
            arguments=(Argument("NAME", Arity.OPTIONAL, "Sandbox"),),
            options=(Option("all", "a", help="Stopped ones, too"), _FILTER, _FORMAT, _NAMES_ONLY),
            exclusive=(("name", "all"), ("name", "label")),
        ),
        Command(
            "metrics",
            "Show what running sandboxes use",
            "metrics:metrics",
            _SANDBOXES,
            arguments=(Argument("NAME", Arity.OPTIONAL, "Sandbox"),),
            options=(
                Option("watch", None, help="Go on showing it, every second, until Ctrl-C"),
                Option(
                    "interval", "w", "SECONDS", "Go on showing it at that interval", convert=values.interval
                ),
                _FORMAT,
            ),
        ),
        Command(
            "remove",
            "Remove sandboxes",
            "lifecycle:remove",
            _SANDBOXES,
            aliases=("rm",),
            arguments=_NAMES,
            options=(_LABEL, Option("force", "f", help="Kill running ones first"), _QUIET),
        ),
        Command(
            "exec",
            "Run a command in an existing sandbox",
            "exec:run",
            _SANDBOXES,
            arguments=(Argument("NAME", Arity.ONE, "Sandbox"),),
            options=(
                Option("env", "e", "KEY[=VALUE]", "Environment variable of the command", True, values.env),
                Option("workdir", "w", "PATH", "Directory the command starts in"),
                Option("user", "u", "USER", "User the command runs as"),
                _TTY,
                _TIMEOUT,
                _RLIMIT,
                _QUIET,
                _DETACH_KEYS,
            ),
            trailing=True,
        ),
        Command(
            "logs",
            "Show what a sandbox printed",
            "logs:logs",
            _SANDBOXES,
            arguments=(Argument("NAME", Arity.ONE, "Sandbox"),),
            options=_LOGS_OPTIONS,
            exclusive=(("color", "no_color"),),
        ),
        Command(
            "inspect",
            "Show a sandbox's configuration",
            "listing:inspect",
            _SANDBOXES,
            arguments=(Argument("NAME", Arity.ONE, "Sandbox"),),
            options=(_FORMAT,),
        ),
        _IMAGE,
        _PULL,
        _LOAD,
        _TEMPLATE,
        Command(
            "doctor",
            "Check what this host can do",
            "doctor:doctor",
            _OTHER,
            options=(
                Option("fix", help="Prepare what can be prepared: guest kernel, template"),
                _FORMAT,
                Option("quiet", "q", help="Show only what is missing"),
            ),
        ),
        Command(
            "help",
            "Show help",
            "help:show_help",
            _OTHER,
            arguments=(Argument("COMMAND", Arity.MANY, "Command to explain"),),
        ),
        Command("sandbox", "The runtime of one sandbox", stage=Stage.HIDDEN),
        Command(
            "images", "List images", "images:list_images", options=_IMAGE_LIST_OPTIONS, stage=Stage.HIDDEN
        ),
        Command(
            "rmi",
            "Remove images",
            "images:remove",
            arguments=_REFERENCES,
            options=(_FORCE_REMOVE, _QUIET),
            stage=Stage.HIDDEN,
        ),
        *(Command(name, "", aliases=aliases, stage=Stage.LATER) for name, aliases in _LATER_COMMANDS),
    ),
)
