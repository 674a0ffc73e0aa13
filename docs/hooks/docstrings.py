"""A griffe extension that reads docstrings in the form of Transformers.

Transformers writes `name (`type` of shape `(a, b)`, *optional*): text` and links with [`Name`]. Griffe's Google parser
expects plain types and knows no such links, so both are translated here before it parses them. The arguments of a
dataclass for the command line are documented by `field(metadata={"help": ...})`; these texts become its `Args:`.
"""

import ast
import re
from pathlib import Path

from griffe import Attribute, Class, Extension, Function, Object


ROOT = Path(__file__).resolve().parents[2]

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")
# `name`, `name (type)` or several of them separated by commas; the type may hold parentheses itself
NAME = r"\w+(?: \((?:[^()]|\([^()]*\))*\))?"
ENTRY = re.compile(rf"^(?P<names>{NAME}(?:, {NAME})*)(?:: ?(?P<text>.*))?$")
OPEN = re.compile(rf"^ +\w+(?:, {NAME})* \((?:[^()]|\([^()]*\))*$")
ERROR = re.compile(r"^`?(?P<type>[A-Z]\w+)`?: ?(?P<text>.*)$")
TYPED = re.compile(r"(\w+)(?: \(((?:[^()]|\([^()]*\))*)\))?")
RETURN = re.compile(r"^(?P<type>`[^`]+`|\[`[^`]+`\]): (?P<text>.*)$")
DEFAULT = re.compile(r"(?<=\w), defaults to [^()]+(?=\):)")
LINK = re.compile(r"\[`([\w.]+)`\](?![\[(])")


def translate(text: str, targets: dict[str, str]) -> str:
    """
    A docstring of Transformers' form as one that griffe's Google parser understands.

    Args:
        text (`str`): The docstring, without indentation.
        targets (`dict[str, str]`): Names that [`Name`] may link to, with the path of each.
    """
    lines, section, indent = [], None, 0
    for line in joined(text.splitlines()):
        stripped, depth = line.strip(), len(line) - len(line.lstrip())
        heading = SECTION.match(line)
        if heading:
            section, indent = heading[1], 0
        elif section and stripped and depth == 0:
            section = None
        elif section and stripped:
            indent = indent or depth
            if depth == indent:
                line = " " * depth + translate_entry(stripped, section, " " * indent)
        lines.append(link(line, targets))
    return "\n".join(lines)


def joined(lines: list[str]) -> list[str]:
    """The lines, with an entry whose type is broken over two of them on one."""
    whole: list[str] = []
    for line in lines:
        if whole and OPEN.match(whole[-1]):
            whole[-1] += " " + line.strip()
        else:
            whole.append(line)
    return whole


def translate_entry(line: str, section: str, indent: str) -> str:
    """A line that stands where entries of a section begin. One that begins none goes on with the entry above."""
    if section in ("Returns", "Yields"):
        found = RETURN.match(line)
        return f"{plain(found['type'])}: {found['text']}" if found else line
    if section == "Raises":
        found = ERROR.match(line)
        return f"{found['type']}: {found['text']}" if found else indent + line
    found = ENTRY.match(line)
    if not found:
        return indent + line
    named = TYPED.findall(found["names"])
    types = [kind for _, kind in named if kind]
    if not types and found["text"] is None:
        return indent + line
    names = ",\N{NO-BREAK SPACE}".join(name for name, _ in named)  # griffe splits at the first common blank
    kind = plain(types[-1]) if types else ""
    return f"{names}{f' ({kind})' if kind else ''}: {found['text'] or ''}"


def plain(kind: str) -> str:
    """A type without Markdown: "`int`, *optional*" is "int"; the signature tells what is optional."""
    return re.sub(r"[`*]|\[(?=`)|(?<=`)\]", "", re.sub(r"(, |^)\*optional\*", "", kind))


def link(line: str, targets: dict[str, str]) -> str:
    """[`Name`] as a link where the site documents `Name`, and as code elsewhere."""

    def replaced(found: re.Match) -> str:
        name = found[1]
        if name not in targets:
            return f"`{name}`"
        return f'<autoref identifier="{targets[name]}" optional><code>{name}</code></autoref>'

    return LINK.sub(replaced, line)


def public_names(root: Path) -> dict[str, str]:
    """Classes and functions of all modules below `root`, with their paths; a name that two modules use is left out."""
    paths: dict[str, set[str]] = {}
    for file in [*root.glob("*.py"), *root.glob("*/**/*.py")]:
        parts = file.relative_to(root).with_suffix("").parts
        if parts[0].startswith(".") or parts[0] in ("build", "checkpoints", "docs", "tests"):
            continue
        module = ".".join(["sama", *parts])
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                paths.setdefault(node.name, set()).add(f"{module}.{node.name}")
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef):
                        name = f"{node.name}.{inner.name}"
                        paths.setdefault(name, set()).add(f"{module}.{name}")
    return {name: found.pop() for name, found in paths.items() if len(found) == 1}


def field_help(attribute: Attribute) -> str | None:
    """The text of an argument that is written `field(default=..., metadata={"help": text})`."""
    if attribute.value is None or not str(attribute.value).startswith("field("):
        return None
    call = ast.parse(str(attribute.value), mode="eval").body
    for word in call.keywords:
        if word.arg == "metadata" and isinstance(word.value, ast.Dict):
            for key, value in zip(word.value.keys, word.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help":
                    return ast.literal_eval(value)
    return None


def arguments_section(settings: Class) -> str:
    """The arguments of a dataclass for the command line, from their help texts; empty for any other class."""
    described = [(name, field_help(member)) for name, member in settings.attributes.items() if not member.is_alias]
    entries = [f"    {name}: {text}" for name, text in described if text is not None]
    return "\n".join(["", "", "Args:", *entries]) if entries else ""


class TransformersDocstrings(Extension):
    """Translates every docstring of the package once its object is complete."""

    def __init__(self):
        self.targets = public_names(ROOT)

    def on_object(self, *, obj: Object, **kwargs) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            own = {name: f"{obj.parent.path}.{name}" for name in _siblings(obj)}
            arguments = arguments_section(obj) if isinstance(obj, Class) else ""
            text = translate(obj.docstring.value + arguments, self.targets | own)
            obj.docstring.value = DEFAULT.sub("", text) if has_defaults(obj) else text


def has_defaults(obj: Object) -> bool:
    """Whether the signature tells the defaults, so that the docstring need not."""
    return isinstance(obj, Class | Function) and len(obj.parameters) > 0


def _siblings(obj: Object) -> list[str]:
    """Methods of the class that `obj` stands in, which its docstring may name without the class."""
    if not isinstance(obj.parent, Class):
        return []
    return [name for name, member in obj.parent.members.items() if not member.is_alias and member.is_function]
