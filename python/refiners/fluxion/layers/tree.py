"""Drawings of module trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypedDict

from torch import nn

DEFAULT_DEPTH = 7


class TreeNode(TypedDict):
    """One line of a drawing and what hangs below it."""

    value: str
    class_name: str
    children: list[TreeNode]


class ModuleTree:
    """Describe a module and everything below it, with runs of equal neighbours folded into one line.

    Args:
        module: The root.
        depth: How many levels to describe below the root; negative for all.
        marked: A direct child of the root that is pointed at in the drawing, and never folded.
        mark: The text that follows the marked child.
    """

    def __init__(self, module: nn.Module, depth: int = -1, marked: nn.Module | None = None, mark: str = "") -> None:
        self.root = _describe(module, depth, marked, mark)

    def __iter__(self) -> Iterator[TreeNode]:
        return iter(self.root["children"])

    def __str__(self) -> str:
        return f"{type(self).__name__}(root={self.root['value']})"

    def __repr__(self) -> str:
        return self.draw(DEFAULT_DEPTH)

    def draw(self, depth: int = -1) -> str:
        """Draw the tree; nodes at level `depth` that have children end in ` ...`. Negative for no limit."""
        if depth == 0 and self.root["children"]:
            return f"└── {self.root['value']} ..."
        lines = [self.root["value"]]
        _draw_children(self.root, "    ", depth - 1, lines)
        return "\n".join(lines)

    @staticmethod
    def shorten_tree_repr(tree_repr: str, /, line_index: int = 0, max_lines: int = 20) -> str:
        """Keep the lines around one line: half of `max_lines` before it and as many after it."""
        lines = tree_repr.split("\n")
        return "\n".join(lines[max(0, line_index - max_lines // 2) : line_index + max_lines // 2 + 1])


def node_value(module: nn.Module) -> str:
    """Return the line that stands for a module. Never raises: error messages are built from it."""
    try:
        text = str(module)
    except Exception as error:
        text = f"{type(module).__name__}(<{type(error).__name__} in __str__>)"
    tag: str = getattr(type(module), "_tag", "")
    if not tag:
        return text
    show_only_tag: Callable[[], bool] = getattr(module, "_show_only_tag", bool)
    return f"({tag})" if show_only_tag() else f"({tag}) {text}"


def _describe(module: nn.Module, depth: int, marked: nn.Module | None = None, mark: str = "") -> TreeNode:
    node = TreeNode(value=node_value(module), class_name=type(module).__name__, children=[])
    if not hasattr(type(module), "_tag") or "_modules" not in module.__dict__:
        return node  # a foreign module describes itself; one that was never initialised has no children
    children = [_describe(child, depth - 1) for child in module.children()] if depth != 0 else []
    if depth == 0 and any(True for _ in module.children()):
        node["value"] += " ..."
    if marked is not None:
        for child, description in zip(module.children(), children):
            if child is marked:
                description["value"] = f">>> {description['value']} | {mark}"
    node["children"] = _number(_fold(children))
    return node


def _fold(children: list[TreeNode]) -> list[TreeNode]:
    folded: list[TreeNode] = []
    index = 0
    while index < len(children):
        end = index + 1
        while end < len(children) and children[end] == children[index]:
            end += 1
        if end - index > 1:
            folded.append({**children[index], "value": f"{children[index]['value']} (x{end - index})"})
        else:
            folded.append(children[index])
        index = end
    return folded


def _number(children: list[TreeNode]) -> list[TreeNode]:
    total = Counter(child["class_name"] for child in children)
    seen: Counter[str] = Counter()
    for child in children:
        name = child["class_name"]
        if total[name] > 1:
            seen[name] += 1
            child["value"] += f" #{seen[name]}"
    return children


def _draw_children(node: TreeNode, indent: str, depth: int, lines: list[str]) -> None:
    last = len(node["children"]) - 1
    for index, child in enumerate(node["children"]):
        connector, continuation = ("└── ", "    ") if index == last else ("├── ", "│   ")
        cut = depth == 0 and child["children"]
        lines.append(f"{indent}{connector}{child['value']}{' ...' if cut else ''}")
        if not cut:
            _draw_children(child, indent + continuation, depth - 1, lines)
