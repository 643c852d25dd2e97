"""Programs that keep state, in pods of containerd's CRI: each goes on in a new pod, its connections over loopback too.

Their data is in the rootfs and in the pod's /dev/shm; SQLite's is in a volume that moves along. A client within the
container sees nothing: its connection goes on. One outside has to connect again, for the new pod has another address
(docs/processes.md, and the tests that it names).
"""

import subprocess
from collections.abc import Iterator

import pytest
from pods import Pod, wait

from tests.e2e import programs
from tests.e2e.cri import Cri, give_data
from tests.e2e.images import APPLICATIONS
from tests.requirements import RUNTIME, containerds

pytestmark = pytest.mark.needs(
    "root",
    "runc",
    "criu",
    "containerd 1.7",
    "cri",
    "applications",
    "busybox",
    "runtime",
    "cc",
    "inet-dump",
)


@pytest.fixture(scope="module")
def containerd() -> Iterator[Cri]:
    """The newest containerd, with the image."""
    with Cri(RUNTIME, list(containerds().values())[-1]) as made:
        made.import_applications()
        yield made


def _moved(cri: Cri, name: str, script: str) -> Pod:
    """Run the script in a pod, checkpoint it, remove the pod, and let it go on in another, without a number lost."""
    old = Pod(base=cri.base, name="old")
    cri.run_pod(old)
    library = ["cc", "-shared", "-fPIC", "-nostdlib", "-x", "c", "-", "-o", str(old.data / "uid.so")]
    subprocess.run(library, input=programs.NOT_ROOT, text=True, check=True)
    cri.start(old, script, image=APPLICATIONS)
    wait("it counts", lambda: len(cri.numbers(old)) >= 10, timeout=60)
    images = cri.checkpoint(old, name, stop=True)
    wait("CRI sees the end", lambda: cri.exit_code(old.container) is not None)
    last = cri.numbers(old)[-1]
    assert cri.numbers(old) == list(range(1, last + 1))
    volume = cri.base / f"volume-{name}"
    old.data.rename(volume)
    cri.remove(old)

    new = Pod(base=cri.base, name="new")
    checkpoint = str(images.parents[1])
    cri.run_pod(new, checkpoint=checkpoint)
    give_data(volume, new)
    cri.start(new, "echo it starts from scratch", image=APPLICATIONS, checkpoint=checkpoint)
    wait("it goes on", lambda: len(cri.numbers(new)) >= last + 10, timeout=30)
    numbers = cri.numbers(new)
    assert numbers == list(range(1, len(numbers) + 1)), "the log holds what the old pod's had, and goes on"
    return new


def _ends(cri: Cri, pod: Pod) -> None:
    # The first process is killed, or sees before that its server is.
    assert cri.stop(pod.container, grace=0) in (1, 2, 137)
    cri.remove(pod)


def test_python_with_threads_files_sqlite_connection_mapping_and_child_goes_on(containerd: Cri) -> None:
    pod = _moved(containerd, "python", programs.PYTHON_PROGRAM)
    assert containerd.exec(pod.container, "/bin/cat", "/etc/hostname") == "new\n"
    _ends(containerd, pod)


def test_nginx_keeps_a_clients_connection_and_serves_a_new_one(containerd: Cri) -> None:
    pod = _moved(containerd, "nginx", programs.NGINX)
    assert containerd.exec(pod.container, "/bin/busybox", "wget", "-qO-", "http://127.0.0.1:8080/") == "served\n"
    _ends(containerd, pod)


def test_redis_keeps_its_data_and_a_clients_connection(containerd: Cri) -> None:
    pod = _moved(containerd, "redis", programs.REDIS)
    before = containerd.numbers(pod)[-1]
    assert int(containerd.exec(pod.container, "/usr/bin/redis-cli", "get", "number")) >= before
    assert containerd.exec(pod.container, "/usr/bin/redis-cli", "config", "set", "save", "") == "OK\n"
    _ends(containerd, pod)


def test_postgresql_keeps_its_tables_and_a_clients_connection(containerd: Cri) -> None:
    pod = _moved(containerd, "postgresql", programs.POSTGRES)
    before = containerd.numbers(pod)[-1]
    query = ["/pgbin/psql", "-XqtA", "-h", "127.0.0.1", "-U", "app", "postgres", "-c", "select count(*) from t"]
    assert int(containerd.exec(pod.container, *query)) >= before
    _ends(containerd, pod)
