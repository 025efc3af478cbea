"""The files that start clusters: they fit the Ray that is installed. Their commands: test_docs."""

import copy
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray.scripts.scripts
from doc_pages import blocks_of, commands_of, unknown_options
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML
from tiny_suite import tiny_suite

from raymerge import results
from raymerge.command_page import program

ROOT = Path(__file__).parent.parent
RAY_UP = ["cluster.yaml", "examples/ray-up-aws.yaml", "examples/ray-up-gcp.yaml"]
CLOUDS = RAY_UP[1:]
KUBERAY = ROOT / "examples" / "kuberay-rayjob.yaml"
SLURM = ROOT / "examples" / "slurm.sh"
GUIDE = "docs/cluster.md"


def load_yaml(path: Path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


RAY: Any = ray.scripts.scripts.cli
RAYMERGE = program()


# --- ray up ---


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_accepts_the_file(name):
    given = load_yaml(ROOT / name)
    config = prepare_config(copy.deepcopy(given))
    validate_config(config)
    for key in ("head_start_ray_commands", "worker_start_ray_commands", "file_mounts"):
        assert config[key] == given[key], "what the file says is not replaced by a default"


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_starts_ray_with_a_token(name):
    config = load_yaml(ROOT / name)
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token ~/raymerge-venv/bin/ray start" in command
        assert unknown_options(RAY, shlex.split(command.partition("/bin/ray")[2])) == []
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in " ".join(starts)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_own_machines_all_join():
    config = prepare_config(load_yaml(ROOT / "cluster.yaml"))
    (node_type,) = config["available_node_types"].values()
    # `ray up` exports RAY_enable_autoscaler_v2=1 before the commands, and with it one worker never starts
    assert "RAY_enable_autoscaler_v2=0 RAY_AUTH_MODE=token" in config["head_start_ray_commands"][-1]
    assert (node_type["min_workers"], node_type["max_workers"]) == (2, 2)
    assert config["auth"]["ssh_private_key"] == "~/.ssh/id_ed25519", "the head starts the workers over SSH"


@pytest.mark.parametrize("name", RAY_UP)
def test_programs_are_found_without_their_folder(name, tmp_path):
    """`ray down` calls `ray stop`, and `ray job submit` whatever it is told, in a shell as Ray starts them."""
    if (usual := Path("/etc/skel/.bashrc")).exists():
        shutil.copy(usual, tmp_path)
    (command,) = (line for line in load_yaml(ROOT / name)["setup_commands"] if ".bashrc" in line)
    program = tmp_path / "raymerge-venv" / "bin" / "ray"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["bash", "-c", command], env=environment, check=True)
    assert (tmp_path / ".bashrc").read_text().count("raymerge-venv") == 1, "however often `ray up` is run"
    shell = ["bash", "--norc", "-i", "-c", "source ~/.bashrc; ray stop"]
    ran = subprocess.run(shell, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.stdout.splitlines()[-1:] == ["found"], ran.stderr


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_workers_come_and_go(name):
    config = prepare_config(load_yaml(ROOT / name))
    head, worker = (config["available_node_types"][kind] for kind in ("head", "worker"))
    assert config["head_node_type"] == "head"
    assert "GPU" not in head["resources"]
    assert (worker["min_workers"], worker["max_workers"], config["max_workers"]) == (1, 4, 4)
    assert config["idle_timeout_minutes"] == 10
    assert any("boto3" in command or "google" in command for command in config["head_setup_commands"])


def test_cloud_files_differ_in_what_the_clouds_differ_in():
    aws, gcp = (load_yaml(ROOT / name) for name in CLOUDS)
    differing = {key for key in {*aws, *gcp} if aws.get(key) != gcp.get(key)}
    assert differing == {"provider", "available_node_types", "head_setup_commands"}


# --- Kubernetes ---


def test_kuberay_job_runs_the_sweep_and_ends():
    manifest = load_yaml(KUBERAY)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "raymerge-token"}
    assert spec["rayClusterSpec"]["rayVersion"] == "2.60.0"
    assert f"ray:{spec['rayClusterSpec']['rayVersion']}-" in (ROOT / "examples" / "Dockerfile").read_text()
    assert unknown_options(RAYMERGE, shlex.split(spec["entrypoint"])[1:]) == []
    command = shlex.split(spec["entrypoint"])
    assert command[command.index("--output") + 1].startswith("/data/"), "results outlive the pods"


def kuberay_pods() -> dict[str, dict]:
    cluster = load_yaml(KUBERAY)["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    return {"head": cluster["headGroupSpec"]["template"]["spec"], "worker": workers["template"]["spec"]}


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_kuberay_containers(kind):
    pod = kuberay_pods()[kind]
    (container,) = pod["containers"]
    environment = {variable["name"]: variable for variable in container["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"] == {
        "secretKeyRef": {"name": "raymerge-token", "key": "auth_token"}
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "data": "/data"}
    assert environment["RAYMERGE_HOME"]["value"].startswith("/data/")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["data"]["persistentVolumeClaim"] == {"claimName": "raymerge-data"}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == {"head": None, "worker": "1"}[kind]
    assert pod["securityContext"] == {"fsGroup": 100}, "the user of Ray's images can write to the volume"


def test_kuberay_workers_come_and_go():
    cluster = load_yaml(KUBERAY)["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert (workers["minReplicas"], workers["replicas"], workers["maxReplicas"]) == (1, 1, 4)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"


def test_kuberay_volume_is_filled_by_a_pod_like_those_of_the_job():
    filling = load_yaml(ROOT / "examples" / "raymerge-fill.yaml")["spec"]
    head = kuberay_pods()["head"]
    (container,), (of_head,) = filling["containers"], head["containers"]
    assert container["image"] == of_head["image"]
    assert container["volumeMounts"] == [mount for mount in of_head["volumeMounts"] if mount["name"] == "data"]
    assert container["env"] == [variable for variable in of_head["env"] if variable["name"] == "RAYMERGE_HOME"]
    assert filling["volumes"] == [volume for volume in head["volumes"] if volume["name"] == "data"]
    assert filling["securityContext"] == head["securityContext"]


def test_kuberay_volume_is_the_one_of_the_job():
    claim = load_yaml(ROOT / "examples" / "raymerge-data.yaml")
    assert claim["metadata"]["name"] == "raymerge-data"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


# --- SLURM ---

SRUN = f'''\
#!{sys.executable}
"""srun on one machine: the command runs here, once for each task, and gets srun's SIGTERM."""
import signal, subprocess, sys

arguments, tasks = sys.argv[1:], 1
while arguments[0].startswith("--"):
    name, _, value = arguments.pop(0).partition("=")
    tasks = int(value) if name == "--ntasks" else tasks
processes = [subprocess.Popen(arguments) for _ in range(tasks)]
signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
sys.exit(max(process.wait() for process in processes))
'''
SCONTROL = """\
#!/bin/sh
[ "$1 $2" = "show hostnames" ] || exit 1
echo "$3" | tr , '\\n'
"""
STUBS = {"srun": SRUN, "scontrol": SCONTROL}
# in the place of `raymerge sweep`: says what it sees, and ends on SIGTERM as an interrupted sweep does
COMMAND = """\
import json, os, pathlib, signal, stat, sys, threading

told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
seen = {
    "arguments": sys.argv[2:],
    "auth": os.environ["RAY_AUTH_MODE"],
    "token_mode": stat.S_IMODE(token.stat().st_mode),
    "token_length": len(token.read_text()),
}
out = pathlib.Path(sys.argv[1])
out.with_suffix(".part").write_text(json.dumps(seen))
out.with_suffix(".part").rename(out)
told.wait(240)
sys.exit(130)
"""


class SlurmJob:
    """examples/slurm.sh as SLURM would run it, on this machine."""

    def __init__(self, folder: Path, *arguments: str, nodes: str, command: str, stubs: Mapping[str, str] = STUBS):
        programs = folder / "bin"
        programs.mkdir()
        for name, text in {**STUBS, **stubs}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.job_id = 1_000_000 + os.getpid()
        self.token = folder / "tokens" / f"slurm-{self.job_id}.token"
        self.ray_files = Path(f"/tmp/ray-{self.job_id}")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "SLURM_JOB_ID": str(self.job_id),
            "SLURM_JOB_NODELIST": nodes,
            "SLURM_CPUS_PER_TASK": "2",
            "RAYMERGE_VENV": str(folder / "none"),
            "RAYMERGE_HOME": str(folder / "home"),
            "RAYMERGE_TOKENS": str(folder / "tokens"),
            "RAYMERGE_HEAD_IP": "127.0.0.1",
            "RAYMERGE_COMMAND": command,
        }
        self.process = subprocess.Popen(
            [str(SLURM), *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=400)
        return self.process.returncode, output

    def kill(self) -> None:
        """End whatever a failed test has left: every process of the job's session."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Processes of this job's Ray."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"{self.ray_files}/" in path.read_text() or f"--temp-dir={self.ray_files}" in path.read_text():
                    found.append(int(path.parent.name))
            except OSError:  # it has just ended
                continue
        return found


def test_slurm_script_is_bash_and_can_be_run():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    assert SLURM.stat().st_mode & stat.S_IXUSR
    text = SLURM.read_text()
    assert "#SBATCH --signal=B:TERM@120" in text
    assert not re.search(r"^[^#]*\bray stop\b", text, re.MULTILINE), "it would end the Ray of other jobs"


def test_slurm_script_without_a_sweep_file_says_how_to_use_it():
    found = subprocess.run([str(SLURM)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "usage: sbatch examples/slurm.sh SPEC [options of raymerge sweep]\n"


def test_slurm_job_fails_at_once_if_ray_does_not_start(tmp_path):
    job = SlurmJob(tmp_path, "x.yaml", nodes="n1", command="false", stubs={"ray": "#!/bin/sh\nexit 1\n"})
    try:
        status, output = job.wait()
        assert status == 1
        assert "Ray's head has ended; its output is above.\n" in output
        assert f"Ray's logs stay in {job.ray_files}/session_latest/logs of each node.\n" in output
        assert not job.token.exists()
    finally:
        job.kill()


@pytest.mark.ray
@pytest.mark.slow
def test_slurm_job_ends_the_sweep_before_its_time_is_over(tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    seen = tmp_path / "seen.json"
    command = f"{sys.executable} {tmp_path / 'command.py'} {seen}"
    job = SlurmJob(tmp_path, "x.yaml", "--set", "a=b c", nodes="n1", command=command)
    try:
        deadline = time.monotonic() + 300
        while not seen.exists() and job.process.poll() is None:
            assert time.monotonic() < deadline, "the sweep did not start"
            time.sleep(0.2)
        if seen.exists():
            os.kill(job.process.pid, signal.SIGTERM)  # what --signal=B:TERM@120 does
        status, output = job.wait()
        assert status == 130, output
        port = 20000 + job.job_id % 1200 * 10
        assert json.loads(seen.read_text()) == {
            "arguments": ["x.yaml", "--set", "a=b c", "--address", f"127.0.0.1:{port}"],
            "auth": "token",
            "token_mode": 0o600,
            "token_length": 64,
        }
        assert "Interrupted: submit the same command again, and it continues." in output
        assert job.processes() == []
        assert not job.token.exists()
        assert not job.ray_files.exists()
    finally:
        job.kill()


@pytest.mark.ray
@pytest.mark.slow
def test_slurm_job_sweeps_on_two_nodes(tmp_path):
    suite = tiny_suite(tmp_path / "suite", num_tasks=2)
    spec = tmp_path / "tiny.yaml"
    spec.write_text(f"name: tiny\nsuite: {suite.root}\nnum_tasks: 2\nmethods: [zero-shot, weight-averaging]\n")
    command = f"{sys.executable} -m raymerge sweep"
    output = tmp_path / "results"
    job = SlurmJob(tmp_path, str(spec), "--output", str(output), "--json", nodes="n1,n2", command=command)
    try:
        status, text = job.wait()
        assert status == 0, text
        assert "Some nodes have not joined" not in text
        # two nodes of two CPUs, of which one is kept for merges
        assert "with 3 evaluators on cpu" in text
        summary = results.load(output, "summary")
        assert sorted(summary.method) == ["weight-averaging", "zero-shot"]
        assert job.processes() == []
        assert not job.token.exists()
    finally:
        job.kill()


# --- ray job submit ---


def test_ray_leaves_results_and_weights_out_of_a_job():
    excluded = get_excludes_from_ignore_files(ROOT, include_gitignore=True)

    def is_left_out(name: str) -> bool:
        return any(exclude(ROOT / name) for exclude in excluded)

    assert all(map(is_left_out, ["results/x/trials", "a/expert.pt", "b.safetensors", "tests/x.py", "docs/x.md"]))
    kept = ["raymerge/cli.py", "raymerge/suite_files/fetch.py", "sweeps/demo.yaml", "pyproject.toml"]
    assert not any(map(is_left_out, kept))


# --- docs/cluster.md ---


def test_every_start_of_ray_in_the_guide_has_a_token():
    lines = [line for block in blocks_of(GUIDE) for line in commands_of(block) if "ray start" in line]
    assert lines
    assert [line for line in lines if "RAY_AUTH_MODE=token" not in line] == []
