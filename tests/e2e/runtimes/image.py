"""The one image of these tests: busybox, as an archive that both ``ctr images import`` and ``podman load`` read."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
NAME = "docker.io/library/samewire-test:1"
APPLETS = ("sh", "sleep", "ip", "ping", "nc", "httpd", "cat", "mkdir", "printf", "tail")
SCRIPTS = {
    # serve NAME PORT: an HTTP server that says its name
    "serve": "#!/bin/sh\nmkdir -p /www\nprintf %s $1 >/www/name\nexec httpd -f -p $2 -h /www\n",
    # ask HOST PORT: what such a server says; nothing if there is none (busybox's own wget dies when linked statically)
    "ask": "#!/bin/sh\nprintf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 20 $1 $2 | tail -n 1\n",
}


def _add(archive: tarfile.TarFile, name: str, content: bytes | str, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    data = content.encode() if isinstance(content, str) else content
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))


def _layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        _add(layer, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for name, text in SCRIPTS.items():
            _add(layer, f"bin/{name}", text, 0o755)
        _add(layer, "etc/passwd", "root:x:0:0:root:/:/bin/sh\n")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
    return buffer.getvalue()


def write(path: Path) -> None:
    """Write the archive (Docker's image format 1.2). Its command, for a pod's sandbox, is to sleep."""
    layer = _layer()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, "layer.tar", layer)
        _add(archive, "config.json", json.dumps(config))
        _add(archive, "manifest.json", json.dumps(manifest))
