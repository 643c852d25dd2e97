"""Checks of the kernel, CRIU, the downstream and ourselves. Pure."""

import re

from grit_runtime import names
from grit_runtime.doctor.facts import Facts
from grit_runtime.doctor.model import Check, Verdict, fail, ok, skip, warn

OLDEST_CRIU = (4, 1, 1)
_PASSCRED_KERNEL, _PASSCRED_CRIU = (6, 16), (4, 2)
_PAGE = 4096


def numbers(version: str) -> tuple[int, ...]:
    """The first version in a text: `Version: 4.2.1` is (4, 2, 1)."""
    found = re.search(r"\d+(?:\.\d+)+", version)
    return tuple(int(word) for word in found[0].split(".")) if found else ()


def dotted(version: tuple[int, ...]) -> str:
    """`4.2.1`."""
    return ".".join(str(number) for number in version)


def kernel_checkpoint(facts: Facts) -> Verdict:
    """CRIU needs CONFIG_CHECKPOINT_RESTORE."""
    if facts.kernel.map_files:
        return ok(f"Linux {facts.kernel.release} has what checkpoints need (CONFIG_CHECKPOINT_RESTORE)")
    return fail(
        f"Linux {facts.kernel.release} was built without CONFIG_CHECKPOINT_RESTORE",
        "boot a kernel that has it; the distributions' kernels do",
    )


def kernel_ptrace(facts: Facts) -> Verdict:
    """Yama's 3 forbids ptrace to everybody (Documentation/admin-guide/LSM/Yama.rst)."""
    scope = facts.kernel.ptrace_scope
    if scope == 3:
        return fail(
            "kernel.yama.ptrace_scope is 3: nobody may trace a process, and CRIU has to",
            "set it to 2 or less where sysctl settings are kept, and reboot: it can't be lowered while the node runs",
        )
    return ok("root may trace processes" + (f" (kernel.yama.ptrace_scope is {scope})" if scope is not None else ""))


def memory_way(facts: Facts) -> Verdict:
    """How a restore will fill memory (docs/memory.md)."""
    kernel, transport = facts.kernel, facts.config.memory.transport
    if transport == names.MEMORY_CRIU:
        return ok("CRIU moves memory, by the configuration (`memory.transport`)")
    if kernel.page_size != _PAGE:
        why = f"pages are {kernel.page_size} bytes large here, and memory past CRIU was written for {_PAGE}"
        if transport == names.MEMORY_PARALLEL:
            return fail(f"{why}; `memory.transport` is `parallel`", "set `memory.transport` to `auto`")
        return warn(f"{why}: CRIU moves it, with one thread", "nothing; restores are slower than elsewhere")
    if kernel.architecture != "x86_64":
        return warn(
            f"on {kernel.architecture} memory is filled by process_vm_writev, at some half of the speed",
            "nothing; userfaultfd is used on x86_64 only",
        )
    if kernel.userfaultfd:
        return warn(
            f"there is no userfaultfd ({kernel.userfaultfd}): memory is filled by process_vm_writev, at some half of "
            "the speed",
            "boot a kernel with CONFIG_USERFAULTFD, and let no policy forbid it to containers",
        )
    if facts.config.memory.fill == names.FILL_BEHIND:
        if not kernel.fault_device:
            return warn(
                "no /dev/userfaultfd: memory is filled before a container runs, though `memory.fill` says behind",
                "boot Linux 6.1 or newer with CONFIG_USERFAULTFD",
            )
        return ok("memory is moved by many threads, and filled by userfaultfd, behind a container that runs")
    return ok("memory is moved by many threads, and filled by userfaultfd")


def cgroup_mode(facts: Facts) -> Verdict:
    """The cgroup version, and what it means."""
    mode = facts.kernel.cgroup
    if mode == "v2":
        return ok("cgroup v2")
    if mode:
        also = ", beside v2 (systemd's hybrid mode)" if mode == "hybrid" else ""
        return warn(
            f"cgroup v1{also}: a container with a stopped task (SIGSTOP) can't be checkpointed, for CRIU hangs at it",
            "nothing, if that doesn't happen; else boot with systemd.unified_cgroup_hierarchy=1",
        )
    return fail("no cgroup file system is mounted at /sys/fs/cgroup", "mount it: no container runs without")


def launcher(facts: Facts) -> Verdict:
    """What engines are told to execute."""
    found = facts.launcher
    if found.error:
        return fail(found.error, "install grit-runtime: engines execute the launcher", "make install")
    return ok(found.path)


def downstream(facts: Facts) -> Verdict:
    """The runtime that does what isn't ours."""
    found = facts.downstream
    if found.error:
        return fail(found.error, "install runc, or set `downstream` in the configuration", "apt-get install runc")
    if facts.lacks:
        return fail(
            f"{found.path} ({found.version}) has no verb {', '.join(facts.lacks)}",
            "use runc: it must have been built with support for checkpoints",
        )
    return ok(f"{found.path}, {found.version}")


def criu_found(facts: Facts) -> Verdict:
    """CRIU, where the downstream looks for it: in PATH (runc, libcontainer/criu_linux.go)."""
    program = facts.criu.program
    if program.error:
        return fail(program.error, "install CRIU 4.1.1 or newer", "make deps")
    return ok(f"{program.path}, {program.version}")


def criu_version(facts: Facts) -> Verdict:
    """Which versions were run (docs/compatibility.md)."""
    version = numbers(facts.criu.program.version)
    if not version:
        return skip("CRIU's version isn't known")
    kernel = numbers(facts.kernel.release)[:2]
    if kernel >= _PASSCRED_KERNEL and version[:2] < _PASSCRED_CRIU:
        return warn(
            f"CRIU {dotted(version)} can't dump TCP and UDP sockets on Linux {facts.kernel.release}",
            f"install CRIU {dotted(_PASSCRED_CRIU)} or newer",
            "make deps",
        )
    if version < OLDEST_CRIU:
        oldest = dotted(OLDEST_CRIU)
        return warn(f"CRIU {dotted(version)} is older than {oldest}, the oldest that was run", f"install {oldest}")
    return ok(f"CRIU {dotted(version)}")


def criu_check(facts: Facts) -> Verdict:
    """CRIU's own opinion of the kernel: `criu check`."""
    criu = facts.criu
    if criu.program.error:
        return skip("there is no CRIU")
    said = criu.check_said[-1] if criu.check_said else "nothing"
    if criu.check_code == 0:
        return ok(f"`criu check` says: {said}")
    how = "didn't end in time" if criu.check_code is None else f"ended with {criu.check_code}"
    return fail(f"`criu check` {how}: {said}", "read what `criu check` says, as root")


def criu_python(facts: Facts) -> Verdict:
    """pycriu, which comes with CRIU and decodes its images."""
    if facts.criu.pycriu:
        return fail(
            f"CRIU's Python package can't be used: {facts.criu.pycriu}", "install it with CRIU", "make deps install"
        )
    return ok("CRIU's images can be decoded (pycriu)")


def criu_plugins(facts: Facts) -> Verdict:
    """Plugins that CRIU loads by itself: a cuda_plugin that works on its own (docs/gpu.md)."""
    plugins, mode = facts.criu.plugins, facts.config.cuda.mode
    cuda = [path for path in plugins if "cuda_plugin" in path]
    if mode == names.CUDA_PLUGIN:
        if cuda:
            return ok(f"captures leave CUDA to {cuda[0]}, by the configuration (`cuda.mode`)")
        return fail(
            f"`cuda.mode` is `{names.CUDA_PLUGIN}`, and there is no cuda_plugin.so in {facts.config.cuda.plugin_dir}",
            "install CRIU's plugin, or set `cuda.mode` to `auto`",
        )
    if cuda:
        return warn(
            f"{', '.join(cuda)}: plain runc's checkpoints load it, ours don't",
            "nothing, if all checkpoints are ours; else remove it: it reports success for processes that it could not "
            "ask",
        )
    return ok("no plugin of CRIU's that would be loaded by itself" if not plugins else f"loaded: {', '.join(plugins)}")


def criu_defaults(facts: Facts) -> Verdict:
    """Files that change what CRIU does, whoever calls it (criu(8), "CONFIGURATION FILES")."""
    if facts.criu.defaults:
        return warn(
            f"CRIU's own configuration files set {', '.join(facts.criu.defaults[:8])}",
            "see that you want them: they count for every dump and restore on this node",
        )
    return ok("no options in /etc/criu/default.conf and /etc/criu/runc.conf")


CHECKS = (
    Check(id="kernel.checkpoint", judge=kernel_checkpoint),
    Check(id="kernel.ptrace", judge=kernel_ptrace),
    Check(id="kernel.cgroup", judge=cgroup_mode),
    Check(id="memory.way", judge=memory_way),
    Check(id="runtime.launcher", judge=launcher),
    Check(id="runtime.downstream", judge=downstream),
    Check(id="criu.found", judge=criu_found),
    Check(id="criu.version", judge=criu_version),
    Check(id="criu.check", judge=criu_check),
    Check(id="criu.python", judge=criu_python),
    Check(id="criu.plugins", judge=criu_plugins),
    Check(id="criu.defaults", judge=criu_defaults),
)
