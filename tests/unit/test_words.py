"""Configuration, annotations, CRIU's files, log lines."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime import config, names
from grit_runtime.checkpoint import locate, manifest
from grit_runtime.criu import conf, images, logs, stage
from grit_runtime.errors import BundleError, CheckpointError, ConfigError, GritError, PlanError
from grit_runtime.oci import bundle, log
from grit_runtime.oci.argv import scan
from grit_runtime.verbs.kill import ends_a_process


def test_an_empty_configuration_is_the_default() -> None:
    assert config.parse(b"", "f") == config.parse(b"# nothing\n", "f") == config.Config()


def test_every_key_of_the_schema_is_read() -> None:
    text = b"""
downstream: /usr/bin/nvidia-container-runtime
state-dir: /run/x
log-dir: /var/log/x
checkpoint-roots: [/a, /b]
require-manifest: false
fsync: false
timeouts: {lock: 1, command: 2, checkpoint: 3, restore: 4.5}
criu: {dump: {timeout: 5, link-remap: false}, restore: {tcp-close: true}}
"""
    found = config.parse(text, "f")
    assert found.downstream == "/usr/bin/nvidia-container-runtime"
    assert found.checkpoint_roots == ("/a", "/b")
    assert (found.require_manifest, found.fsync) == (False, False)
    assert found.timeouts == config.Timeouts(lock=1, command=2, checkpoint=3, restore=4.5)
    assert found.criu_dump["timeout"] == 5
    assert found.criu_dump["link-remap"] is False
    assert found.criu_dump["file-locks"] is True
    assert found.criu_restore["tcp-close"] is True


def test_the_schema_and_the_dataclass_name_the_same_keys() -> None:
    schema = json.loads(Path(config.__file__).with_name("config.schema.json").read_text())
    fields = {name.replace("_", "-") for name in config.Config.__slots__} - {"criu-dump", "criu-restore"}
    assert set(schema["properties"]) == fields | {"criu"}
    assert set(schema["properties"]["timeouts"]["properties"]) == set(config.Timeouts.__slots__)


@pytest.mark.parametrize(
    "text", ["a: 1", "timeouts: {lock: 0}", "checkpoint-roots: []", "state-dir: relative", "&a b: *a", "[1]"]
)
def test_a_wrong_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="configuration f"):
        config.parse(text.encode(), "f")


def test_a_mistake_elsewhere_does_not_hide_the_downstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.yaml"
    monkeypatch.setenv(config.ENV, str(file))
    assert config.guess_downstream() == "runc"
    file.write_text("nonsense: [\ndownstream: '/x/crun' # comment\n")
    assert config.guess_downstream() == "/x/crun"


POD = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "app"}


def _roots(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "root/ns/first/app/checkpoint").mkdir(parents=True)
    return (str(tmp_path / "root"),)


def test_only_containers_are_restored() -> None:
    assert locate.wanted({**POD, names.CHECKPOINT: "/x"})
    assert locate.wanted({names.RESTORE_NAME: "x"})
    assert not locate.wanted(POD)
    assert not locate.wanted({"io.kubernetes.cri.container-type": "sandbox", names.CHECKPOINT: "/x"})
    assert not locate.wanted({"io.kubernetes.cri-o.ContainerType": "sandbox", names.CHECKPOINT: "/x"})


def test_a_path_and_a_name_lead_to_the_same_images(tmp_path: Path) -> None:
    roots = _roots(tmp_path)
    expected = str(tmp_path / "root/ns/first/app/checkpoint")
    by_path = locate.locate({**POD, names.CHECKPOINT: f"{roots[0]}/ns/first"}, roots)
    by_name = locate.locate({**POD, names.RESTORE_NAME: "first", "io.kubernetes.cri.sandbox-namespace": "ns"}, roots)
    assert by_path.images == by_name.images == expected


def test_without_a_container_name_the_images_lie_directly_in_the_base(tmp_path: Path) -> None:
    (tmp_path / "root/checkpoint").mkdir(parents=True)
    found = locate.locate({names.CHECKPOINT: str(tmp_path / "root")}, (str(tmp_path / "root"),))
    assert found.images == str(tmp_path / "root/checkpoint")


def test_a_root_may_be_a_link_but_nothing_below_it(tmp_path: Path) -> None:
    roots = _roots(tmp_path)
    (tmp_path / "alias").symlink_to("root")
    found = locate.locate({**POD, names.CHECKPOINT: f"{tmp_path}/alias/ns/first"}, (f"{tmp_path}/alias",))
    assert found.images == f"{tmp_path}/alias/ns/first/app/checkpoint"
    assert os.path.samestat(found.pin.stat(), os.stat(f"{roots[0]}/ns/first/app/checkpoint"))
    (tmp_path / "root/ns/link").symlink_to("first")
    with pytest.raises(CheckpointError, match="symbolic link"):
        locate.locate({**POD, names.CHECKPOINT: f"{roots[0]}/ns/link"}, roots)


@given(st.text(st.sampled_from("./ab\0-"), max_size=20), st.text(st.sampled_from("./ab\0"), max_size=10))
def test_no_annotation_leads_out_of_the_roots(base: str, name: str) -> None:
    annotations = {names.CHECKPOINT: f"/nowhere/{base}", "io.kubernetes.cri.container-name": name}
    with pytest.raises(CheckpointError):
        locate.locate(annotations, ("/nowhere/root",))


def test_criu_options_are_rendered_in_its_own_form() -> None:
    text = conf.render({"leave-stopped": True, "link-remap": False, "timeout": 5, "skip-mnt": ["/a", "/b"]})
    assert text == "leave-stopped\ntimeout 5\nskip-mnt /a\nskip-mnt /b\n"


def test_a_later_line_wins_so_ours_come_first_and_what_must_be_last() -> None:
    assert conf.merge({"timeout": 1}, "timeout 2", {"leave-stopped": True}) == "timeout 1\ntimeout 2\nleave-stopped\n"


@pytest.mark.parametrize("value", ["a#b", 'a"b', "a\nb", "a b"])
def test_a_value_that_the_file_cannot_hold_is_refused(value: str) -> None:
    with pytest.raises(ConfigError):
        conf.render({"root": value})


def test_the_cause_is_found_in_criu_log_and_the_harmless_line_is_not_blamed(tmp_path: Path) -> None:
    file = tmp_path / "restore.log"
    file.write_text(
        "(00.000001) Error (criu/rlimit.c:16): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
        "(00.010000)      1: Error (criu/files-reg.c:2325): Can't open file bin/x on restore: No such file\n"
        "(00.020000) Error (criu/cr-restore.c:2320): Restoring FAILED.\n"
        "(00.030000) Warn  (criu/kerndat.c:1) nothing\n"
    )
    assert logs.reason(str(file)) == (
        "Error (criu/files-reg.c:2325): Can't open file bin/x on restore: No such file; "
        "Error (criu/cr-restore.c:2320): Restoring FAILED."
    )
    assert logs.reason(str(tmp_path / "none")) == ""


def test_staged_links_are_relative_and_rewritten_files_are_copies(tmp_path: Path) -> None:
    source, target = tmp_path / "images", tmp_path / "state/x"
    source.mkdir()
    target.mkdir(parents=True)
    for name in ("pages-1.img", "mountpoints-1.img", "grit.json"):
        (source / name).write_text(name)
    stage.build(str(source), str(target), {"mountpoints-1.img": b"new"})
    assert (target / "pages-1.img").readlink() == Path("../../images/pages-1.img")
    assert (target / "mountpoints-1.img").read_bytes() == b"new"
    assert not (target / "grit.json").exists()
    assert (source / "mountpoints-1.img").read_text() == "mountpoints-1.img"


def test_a_cut_image_is_found_by_its_framing() -> None:
    good = b"\x19\x43\x56\x54" + b"MAGI" + (3).to_bytes(4, "little") + b"abc"
    images._check_framing("f", good)
    images._check_framing("f", b"MAGI" + (3).to_bytes(4, "little") + b"abc")
    for bad in (good[:-1], good + b"x", good + b"\xff\xff\xff\xff", b"", b"abc"):
        with pytest.raises(CheckpointError, match="cut short"):
            images._check_framing("f", bad)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_config_json_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleError):
        bundle.parse("/b", raw)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8
    )
)
def test_a_config_json_of_the_wrong_shape_is_read_as_empty(value: Any) -> None:
    made = bundle.parse(
        "/b", json.dumps({"annotations": value, "root": value, "linux": value, "mounts": value}).encode()
    )
    assert isinstance(made.annotations, dict)
    assert made.rootfs.startswith("/")
    assert all(isinstance(m, dict) for m in made.objects("mounts"))
    assert all(isinstance(m, str) for m in made.strings("linux", "maskedPaths"))


def test_the_log_is_a_pure_json_stream_whose_last_error_is_ours(tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    made = log.Log(scan(["--log", str(file), "--log-format", "json", "restore", "x"]))
    made.relay('{"level":"warning","msg":"a"}\nnot json at all\n')
    assert made.fatal(GritError('two\nlines "quoted"', hint="do this")) == 1
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["level"] for line in lines] == ["warning", "error"]
    assert lines[-1]["msg"] == 'two lines "quoted" (do this)'
    assert log.last_error(file.read_text()) == lines[-1]["msg"]


def test_nothing_is_printed_on_the_containers_stdio(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for verb, printed in (("restore", ""), ("create", ""), ("checkpoint", "x\n"), ("delete", "x\n")):
        log.Log(scan(["--log", str(tmp_path / "l"), verb, "x"])).fatal("x")
        assert capfd.readouterr() == ("", printed)


def test_a_plan_error_names_everything_on_one_line() -> None:
    assert str(PlanError("c", ("a", "b"))) == "cannot restore container c: 2 problems: a; b (nothing was touched)"


def test_a_manifest_survives_its_own_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(b"123")
    data = {"machine": {"architecture": "x86_64"}, "files": [{"name": "a.img", "bytes": 3}]}
    (tmp_path / names.MANIFEST).write_bytes(manifest.encode(data))
    found = manifest.read(str(tmp_path))
    assert found is not None
    assert (found.sizes, found.architecture) == ({"a.img": 3}, "x86_64")
    assert manifest.file_sizes(str(tmp_path))["a.img"] == 3


@pytest.mark.parametrize(
    ("name", "ends"), [("TERM", True), ("sigkill", True), ("15", True), ("CONT", False), ("0", False), ("x", False)]
)
def test_which_signals_end_a_process(name: str, ends: bool) -> None:
    assert ends_a_process(name) is ends
