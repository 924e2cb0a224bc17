"""Real clusters of two nodes on this machine, in a folder of their own: ``python -m tests.study.execute.clusters``."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.runs import ROOT

SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol")
SLURM_CONF = """\
ClusterName=lc
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={ports[0]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def absent_of_slurm() -> list[str]:
    """Programs of SLURM that are not on this machine."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [name for name in SLURM if shutil.which(name, path=path) is None]


@contextmanager
def two_slurm_nodes(folder: Path) -> Iterator[dict[str, str]]:
    """A controller and two nodes; yields the environment in which the commands of SLURM find them."""
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    environment["PATH"] = os.pathsep.join([environment["PATH"], "/usr/sbin", "/sbin"])
    (folder / "state").mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    (folder / "slurm.conf").write_text(SLURM_CONF.format(host=host, folder=folder, user=user, ports=free_ports(3)))

    def start(*command: str) -> None:
        with (folder / "daemons.log").open("ab") as log:
            subprocess.run(command, env=environment, check=True, stdout=log, stderr=log, timeout=60)

    files = {name: f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")}
    try:
        start("munged", "--force", f"--socket={folder}/munge.sock", f"--key-file={key}", *files.values())
        start("slurmctld", "-c")
        start("slurmd", "-c", "-N", "n1")
        start("slurmd", "-c", "-N", "n2")
        end = time.monotonic() + 60
        while ask(environment, "sinfo", "--noheader", "--format=%D %t").split() != ["2", "idle"]:
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield environment
    finally:
        ask(environment, "scancel", f"--user={user}")  # what a failed test has left
        end = time.monotonic() + 60
        while ask(environment, "squeue", "--noheader") and time.monotonic() < end:
            time.sleep(0.5)
        for file in ("slurmd-n1.pid", "slurmd-n2.pid", "slurmctld.pid", "munged.pid"):
            stop(folder / file)


def stop(file: Path) -> None:
    """End the daemon whose number stands in the file."""
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        pid = int(file.read_text())
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)


def ask(environment: dict[str, str], *command: str) -> str:
    """What a command of SLURM prints; nothing if it fails."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


# -------------------- Ray


class TwoRayNodes:
    """A head without CPUs and two nodes, of two CPUs and one GPU that is none, as processes of another process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.study.execute.clusters"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.address = self._said("address ")

    def kill_node(self) -> None:
        """Kill all processes of one node."""
        assert self._process.stdin is not None
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        self._said("killed")

    def close(self) -> None:
        """Stop all."""
        self._process.communicate(timeout=120)

    def _said(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError(f"the cluster ended before it said {word!r}")


def serve(lines: Sequence[str]) -> None:
    """Start a cluster of Ray and do what the lines say."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2, num_gpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    print(f"address {cluster.address}", flush=True)
    for line in lines:
        if line.strip() == "kill":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    serve(sys.stdin)  # type: ignore[arg-type]
