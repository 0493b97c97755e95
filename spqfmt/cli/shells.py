"""The scripts by which bash, zsh and fish ask for completions, and the answers they get.

click's own were run in each shell and fell short: in bash a name with a space came back as two words, in zsh a value
after `--option=` took the option's place, in fish a help text ended at its first comma. Here an answer is one line:
kind, value and help, with tabs between them. The kind is plain, path, or file for whatever the shell itself offers.
"""

import os
from typing import Any

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

ASKED = "_SPQFMT_COMPLETE"
"""Environment variable with which a shell asks for completions; click's name for this program."""


class _Shell(ShellComplete):
    """What the shells have in common: words in COMP_WORDS, the number of the one in question in COMP_CWORD."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The complete words after the program's name, and the one in question."""
        words, number = split_arg_string(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        # bash makes three words of --option=value.
        before = [word for word in words[1:number] if word != "="]
        return before, words[number] if number < len(words) else ""

    def format_completion(self, item: CompletionItem) -> str:
        """Write a completion as one line: type, value and help with tabs between."""
        return "\t".join((item.type, str(item.value), item.help or ""))


class _Bash(_Shell):
    name = "bash"
    source_template = """\
%(complete_func)s() {
    local kind value help
    COMPREPLY=()
    while IFS=$'\\t' read -r kind value help; do
        case $kind in
            plain) COMPREPLY+=("$value") ;;
            path) COMPREPLY+=("$value"); compopt -o filenames ;;
            *) compopt -o default ;;
        esac
    done < <(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete %(prog_name)s)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Zsh(_Shell):
    name = "zsh"
    source_template = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -x COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) %(complete_var)s=zsh_complete
    local answer
    local -a answers parts values described
    answers=("${(@f)$(%(prog_name)s)}")
    # What follows --option= is completed by itself.
    compset -P '-*='
    for answer in $answers; do
        parts=("${(@ps:\\t:)answer}")
        case $parts[1] in
            plain|path)
                if [[ -n $parts[3] ]]; then
                    described+=("${parts[2]//:/\\\\:}:$parts[3]")
                else
                    values+=("$parts[2]")
                fi ;;
            *) _files ;;
        esac
    done
    (( $#described )) && _describe -V %(prog_name)s described
    (( $#values )) && compadd -V unsorted -a values
}

if [[ $funcstack[1] == _%(prog_name)s ]]; then
    # Loaded from $fpath.
    %(complete_func)s "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef %(complete_func)s %(prog_name)s
fi
"""


class _Fish(_Shell):
    name = "fish"
    source_template = """\
function %(complete_func)s
    set -l word (commandline -t)
    # What follows --option= is completed by itself; fish wants the whole word back.
    set -l option ''
    if string match -q -- '-*=*' $word
        set option (string replace -r -- '=.*' '=' $word)
    end
    set -l words (string escape -- (commandline -opc)) $word
    set -l number (math (count $words) - 1)
    for answer in (env COMP_WORDS="$words" COMP_CWORD=$number %(complete_var)s=fish_complete %(prog_name)s)
        set -l parts (string split \\t -- $answer)
        switch $parts[1]
            case plain path
                echo $option$parts[2]\\t$parts[3]
            case '*'
                for path in (__fish_complete_path $parts[2])
                    echo $option$path
                end
        end
    end
end

complete --no-files --command %(prog_name)s --arguments '(%(complete_func)s)'
"""


SHELLS: dict[str, type[Any]] = {shell.name: shell for shell in (_Bash, _Zsh, _Fish)}
for shell in SHELLS.values():
    add_completion_class(shell)
