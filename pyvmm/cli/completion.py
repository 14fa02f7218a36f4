# SPDX-License-Identifier: Apache-2.0
"""``pyvmm completion``: completion for bash, zsh and fish, written from the tables of commands and options.

The scripts never start Python: names of running guests come from their folders (``control.runfolder``),
names of profiles from ``pyvmm.toml``.
"""

from __future__ import annotations

import sys

from pyvmm.cli import COMMANDS
from pyvmm.cli.parser import Command, Option, UsageError
from pyvmm.cli.tables import (
    FILE,
    FOLDER,
    GUEST,
    PROFILE,
    commands,
    option_kind,
    positional_choices,
    positional_kind,
    subcommands,
)
from pyvmm.nearest import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

COMMAND = Command(
    "completion",
    "Completion for a shell: commands, options, their values, files, profiles, running guests.\n"
    "For bash, put: source <(pyvmm completion bash) into ~/.bashrc. For zsh, write it to a file\n"
    "named _pyvmm in a folder of $fpath; for fish, to ~/.config/fish/completions/pyvmm.fish.",
    positional=("shell", "bash|zsh|fish"),
)

# The same for bash and zsh, but for what zsh calls a pattern that may match nothing. bash's compgen -W would
# run what looks like a command in a name, so nothing but letters and the like is taken for one.
_GUESTS = """\
    local base="${PYVMM_RUN_DIR:-}" lock
    if [[ -z $base && -n ${XDG_RUNTIME_DIR:-} && -w $XDG_RUNTIME_DIR ]]; then
        base=$XDG_RUNTIME_DIR/pyvmm-run
    fi
    for lock in "${base:-/tmp/pyvmm-run-$UID}"/*/lock%s; do
        lock=${lock%%/lock}
        [[ -e $lock/lock && ${lock##*/} != *[!A-Za-z0-9._-]* ]] && echo "${lock##*/}"
    done
"""
_PROFILES = (
    "sed -n 's/^\\[profile\\.\"\\{0,1\\}\\([A-Za-z0-9._-]*\\)\"\\{0,1\\}\\].*/\\1/p' pyvmm.toml 2>/dev/null"
)


def main(words: list[str]) -> int:
    """Print the script."""
    shell = str(COMMAND.parse(words).get("shell", ""))
    if shell not in _SHELLS:
        hint = nearest(shell, _SHELLS)
        raise UsageError(f"pyvmm completion takes one of {', '.join(_SHELLS)}, not {shell!r}.{hint}")
    sys.stdout.write(_SHELLS[shell]())
    return 0


# bash


_BASH_ACTIONS = {
    FILE: 'compopt -o filenames 2>/dev/null; words=$(compgen -f -- "$current")',
    FOLDER: 'compopt -o filenames 2>/dev/null; words=$(compgen -d -- "$current")',
    PROFILE: 'words=$(compgen -W "$(_pyvmm_profiles)" -- "$current")',
    GUEST: 'words=$(compgen -W "$(_pyvmm_guests)" -- "$current")',
}


def bash() -> str:
    """Completion for bash 4 and later."""
    known = commands()
    cases = [case for name in COMMANDS for case in _bash_command(name, known)]
    return "\n".join(
        [
            "# bash completion for pyvmm, made by: pyvmm completion bash",
            f"_pyvmm_guests() {{\n{_GUESTS % ''}}}",
            f"_pyvmm_profiles() {{ {_PROFILES}; }}",
            "_pyvmm() {",
            '    local at=$COMP_CWORD current=${COMP_WORDS[COMP_CWORD]} option words="" options="" colon=""',
            "    # to bash, the = of --option=value and the : of lab:aia are words of their own",
            "    while [[ $at -gt 2 && ( ${COMP_WORDS[at]} == : || ${COMP_WORDS[at-1]} == : ) ]]; do",
            "        ((at--)); current=${COMP_WORDS[at]}$current; colon=${current%:*}:",
            "    done",
            "    option=${COMP_WORDS[at-1]}",
            '    if [[ $current == = ]]; then current=""; option+==',
            "    elif [[ $option == = ]]; then option=${COMP_WORDS[at-2]}=; fi",
            '    if [[ " ${COMP_WORDS[*]:1:at-1} " == *" -- "* ]]; then',
            f"        {_BASH_ACTIONS[FILE]}",
            "    elif [[ $at -eq 1 ]]; then",
            f"        {_bash_words([*COMMANDS, '--help', '--version'])}",
            "    else",
            "        case ${COMP_WORDS[1]} in",
            *[f"    {case}" for case in cases],
            "        esac",
            '        [[ $current == -* ]] && words=$(compgen -W "$options --help" -- "$current")',
            "    fi",
            "    COMPREPLY=()",
            '    if [[ -n $words ]]; then mapfile -t COMPREPLY <<<"$words"; fi',
            '    COMPREPLY=("${COMPREPLY[@]#"$colon"}")',
            "}",
            "complete -F _pyvmm pyvmm",
            "",
        ]
    )


def _bash_command(name: str, known: dict[str, Command]) -> list[str]:
    inner = subcommands(name, known)
    if not inner:
        return [f"    {name})", *_bash_options(known[name], "        "), "        ;;"]
    lines = [
        f"    {name})",
        "        if [[ $COMP_CWORD -eq 2 ]]; then",
        f"            {_bash_words(inner)}",
        "        else",
        "            case ${COMP_WORDS[2]} in",
    ]
    for word, command in inner.items():
        lines += [f"            {word})", *_bash_options(command, " " * 16), "                ;;"]
    return [*lines, "            esac", "        fi", "        ;;"]


def _bash_options(command: Command, indent: str) -> list[str]:
    """What completes the word after each option, and the argument."""
    names = [name for option in command.options for name in option.names]
    lines = [f'options="{" ".join(names)}"', "case $option in"]
    for option in command.options:
        if option.metavar is not None or option.choices:
            # Without a metavar the value is optional, and comes after an = only.
            spellings = [*(option.names if option.metavar else ()), *(f"{name}=" for name in option.names)]
            value = _bash_value(option.choices, option_kind(option))
            lines += [f"{'|'.join(spellings)})", f"    {value} ;;"]
    value = _bash_value(positional_choices(command), positional_kind(command))
    lines += ["*)", f"    {value} ;;", "esac"]
    return [indent + line for line in lines]


def _bash_value(choices: Sequence[str], kind: str | None) -> str:
    if choices:
        return _bash_words(choices)
    return _BASH_ACTIONS[kind] if kind else ":"


def _bash_words(words: Iterable[str]) -> str:
    return f'words=$(compgen -W "{" ".join(words)}" -- "$current")'


# zsh

_ZSH_ACTIONS = {FILE: "_files", FOLDER: "_files -/", PROFILE: "_pyvmm_profiles", GUEST: "_pyvmm_guests"}


def zsh() -> str:
    """Completion for zsh 5."""
    known = commands()
    top = " ".join(_quoted(f"{name}:{summary}") for name, summary in COMMANDS.items())
    return "\n".join(
        [
            "#compdef pyvmm",
            "# zsh completion for pyvmm, made by: pyvmm completion zsh",
            f"_pyvmm_list_guests() {{\n{_GUESTS % '(N)'}}}",
            '_pyvmm_guests() { local -a found; found=(${(f)"$(_pyvmm_list_guests)"}); compadd -a found }',
            f'_pyvmm_profiles() {{ local -a found; found=(${{(f)"$({_PROFILES})"}}); compadd -a found }}',
            "_pyvmm() {",
            f"    if (( CURRENT == 2 )); then local -a found=({top}); _describe command found; return; fi",
            "    local command=$words[2]",
            "    shift words; (( CURRENT-- ))",
            "    case $command in",
            *[line for name in COMMANDS for line in _zsh_command(name, known)],
            "    esac",
            "}",
            'if [[ $funcstack[1] == _pyvmm ]]; then _pyvmm "$@"; else compdef _pyvmm pyvmm; fi',
            "",
        ]
    )


def _zsh_command(name: str, known: dict[str, Command]) -> list[str]:
    inner = subcommands(name, known)
    if not inner:
        return [f"    {name})", *_zsh_arguments(known[name], "        "), "        ;;"]
    listed = " ".join(_quoted(f"{word}:{_first_line(command)}") for word, command in inner.items())
    lines = [
        f"    {name})",
        f"        if (( CURRENT == 2 )); then local -a found=({listed}); _describe command found; return; fi",
        "        command=$words[2]",
        "        shift words; (( CURRENT-- ))",
        "        case $command in",
    ]
    for word, command in inner.items():
        lines += [f"        {word})", *_zsh_arguments(command, " " * 12), "            ;;"]
    return [*lines, "        esac", "        ;;"]


def _zsh_arguments(command: Command, indent: str) -> list[str]:
    specs = [_zsh_option(option, name) for option in command.options for name in option.names]
    argument = positional_kind(command)
    specs.append(_quoted("(- *)--help[show what there is]"))
    if choices := positional_choices(command):
        specs.append(_quoted(f"1:value:({' '.join(choices)})"))
    elif argument:
        specs.append(_quoted(f"1:{argument}:{_ZSH_ACTIONS[argument]}"))
    if command.rest:
        specs.append(_quoted("*:file:_files"))
    return [
        f"{indent}_arguments -s -S \\",
        *(f"{indent}    {spec} \\" for spec in specs[:-1]),
        f"{indent}    {specs[-1]}",
    ]


def _zsh_option(option: Option, name: str) -> str:
    """One spelling: may be repeated, so that nothing has to be said of its other spellings."""
    text = option.help.replace("[", "(").replace("]", ")").replace(":", "\\:")
    value = (
        f"({' '.join(option.choices)})".replace(":", "\\:")
        if option.choices
        else _ZSH_ACTIONS.get(option_kind(option) or "", " ")
    )
    if option.optional is not None:
        return _quoted(f"*{name}=-[{text}]::value:{value}")
    if option.metavar is None:
        return _quoted(f"*{name}[{text}]")
    return _quoted(f"*{name}{'=' if name.startswith('--') else '+'}[{text}]:value:{value}")


# fish

_FISH_ACTIONS = {
    FILE: "-F",
    FOLDER: "-xa '(__fish_complete_directories)'",
    PROFILE: "-xa '(__pyvmm_profiles)'",
    GUEST: "-xa '(__pyvmm_guests)'",
}


def fish() -> str:
    """Completion for fish 3."""
    known = commands()
    lines = [
        "# fish completion for pyvmm, made by: pyvmm completion fish",
        "function __pyvmm_guests",
        "    set -l base /tmp/pyvmm-run-(id -u)",
        '    if test -n "$PYVMM_RUN_DIR"',
        "        set base $PYVMM_RUN_DIR",
        '    else if test -n "$XDG_RUNTIME_DIR" -a -w "$XDG_RUNTIME_DIR"',
        "        set base $XDG_RUNTIME_DIR/pyvmm-run",
        "    end",
        "    for lock in $base/*/lock",
        "        string split / -- $lock | tail -n 2 | head -n 1",
        "    end",
        "end",
        "function __pyvmm_is  # whether these are the first words",
        "    set -l words (commandline -opc)",
        '    test "$words[2..]" = "$argv"; or string match -q -- "$argv *" "$words[2..]"',
        "end",
        "function __pyvmm_ends_with  # whether there are no other words",
        "    set -l words (commandline -opc)",
        '    test "$words[2..]" = "$argv"',
        "end",
        "function __pyvmm_profiles",
        f"    {_PROFILES}",
        "end",
        "complete -c pyvmm -f",
    ]
    for name, summary in COMMANDS.items():
        lines.append(f"complete -c pyvmm -n __pyvmm_ends_with -a {name} -d {_quoted(summary)}")
        inner = subcommands(name, known)
        for word, command in inner.items():
            missing = f"__pyvmm_ends_with {name}"
            lines.append(
                f"complete -c pyvmm -n {_quoted(missing)} -a {word} -d {_quoted(_first_line(command))}"
            )
            lines += _fish_command(f"__pyvmm_is {name} {word}", command)
        if not inner:
            lines += _fish_command(f"__pyvmm_is {name}", known[name])
    return "\n".join(lines) + "\n"


def _fish_command(seen: str, command: Command) -> list[str]:
    start = f"complete -c pyvmm -n {_quoted(seen)}"
    lines = []
    for option in command.options:
        names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
        words = [start, *names]
        if option.metavar is not None and option.choices:
            words.append(f"-xa {_quoted(' '.join(option.choices))}")
        elif option.metavar is not None:
            words.append(_FISH_ACTIONS.get(option_kind(option) or "", "-x"))
        lines.append(" ".join([*words, "-d", _quoted(option.help)]))
    if choices := positional_choices(command):
        return [*lines, f"{start} -xa {_quoted(' '.join(choices))}"]
    argument = FILE if command.rest else positional_kind(command)
    return [*lines, f"{start} {_FISH_ACTIONS[argument]}"] if argument else lines


def _quoted(text: str) -> str:
    """``text`` as one word of any of the shells."""
    return "'" + text.replace("'", "'\\''") + "'"


def _first_line(command: Command) -> str:
    return command.summary.partition("\n")[0]


_SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
