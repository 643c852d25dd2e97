"""The image with the applications, from the root file system that tools/deps unpacked from packages."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

APPLICATIONS = "grit.test/applications:1"


def archive(layer: Path, target: Path) -> None:
    """Write an OCI image archive with one layer, uncompressed."""
    with layer.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    blobs: dict[str, bytes] = {}

    def add(kind: str, value: dict[str, object]) -> dict[str, object]:
        data = json.dumps(value).encode()
        name = hashlib.sha256(data).hexdigest()
        blobs[name] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}.v1+json", "digest": f"sha256:{name}", "size": len(data)}

    path = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    config = add("config", {"architecture": machine, "os": "linux", "config": {"Env": path}, "rootfs": rootfs})
    media = "application/vnd.oci.image.layer.v1.tar"
    layers = [{"mediaType": media, "digest": f"sha256:{digest}", "size": layer.stat().st_size}]
    manifest = add("manifest", {"schemaVersion": 2, "config": config, "layers": layers})
    manifest["annotations"] = {"io.containerd.image.name": APPLICATIONS}
    index = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    files |= {f"blobs/sha256/{name}": data for name, data in blobs.items()}
    with tarfile.open(target, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        tar.add(layer.resolve(), f"blobs/sha256/{digest}")
