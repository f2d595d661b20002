"""The ready-made permissions cover what is asked for, and no more; the unit is not given up."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path
from typing import Any

import yaml

from samewire.kube.wire import PATHS

DEPLOY = Path(__file__).parents[2] / "deploy"
RBAC = DEPLOY / "kubernetes" / "rbac.yaml"


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


def test_systemd_does_not_give_up() -> None:
    """By default five starts in ten seconds are the last."""
    unit = ConfigParser(strict=False, interpolation=None)
    unit.read(DEPLOY / "systemd" / "samewire.service")
    assert unit["Service"]["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
