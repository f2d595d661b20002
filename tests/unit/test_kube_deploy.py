"""The ready-made permissions cover what is asked for, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from samewire.kube.wire import PATHS

RBAC = Path(__file__).parents[2] / "deploy" / "kubernetes" / "rbac.yaml"


def test_the_cluster_role_covers_what_is_watched() -> None:
    documents: dict[str, Any] = {item["kind"]: item for item in yaml.safe_load_all(RBAC.read_text())}
    role, binding = documents["ClusterRole"], documents["ClusterRoleBinding"]
    granted = {
        (group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    asked = set()
    for path in PATHS.values():
        prefix, _, resource = path.rpartition("/")
        asked.add(
            (prefix.removeprefix("/apis/").split("/")[0] if prefix.startswith("/apis/") else "", resource)
        )
    assert granted == asked
    assert all(sorted(rule["verbs"]) == ["list", "watch"] for rule in role["rules"])
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = documents["ServiceAccount"]["metadata"]
    assert (binding["subjects"][0]["name"], binding["subjects"][0]["namespace"]) == (
        account["name"],
        account["namespace"],
    )
