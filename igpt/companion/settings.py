"""Files of settings that users write, as strict YAML: no surprising types, no key twice."""

from __future__ import annotations

import re
from typing import Any

import yaml


class StrictYaml(yaml.SafeLoader):
    """Strict YAML: 24:00:00, 0600, on and 2026-11-26 are strings; duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping. Raises YAMLError for a duplicate key."""
        names = [str(key.value) for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(problem=f"{twice} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


StrictYaml.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("bool", "true|True|false|False", "tTfF"),
    ("null", "null|Null|~|", ["n", "N", "~", ""]),
    ("merge", "<<", "<"),
    ("int", "[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    StrictYaml.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^({pattern})$"), list(first))
