"""Whether tests may have mounts of their own."""

import shutil
import subprocess


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
