"""The real model from a hub, of which a small one runs here: what is fetched, in bytes, and what goes wrong."""

import errno
import logging
import os
import re
import shutil
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.weights import CheckpointError
from longlive_optimized.weights import hub as fetching
from longlive_optimized.weights.checksums import digest
from longlive_optimized.weights.load import check
from longlive_optimized.weights.locate import locate
from longlive_optimized.weights.published import Repository, Wishes, as_repository
from support.hub import LONGLIVE, PIECE, VIDEO, WAN, WAN_AI, Repo, is_large

TOKEN = "hf_averysecrettokenofatester"
MODEL = Repository(LONGLIVE)
NEEDED = {
    LONGLIVE: {"models/longlive_base.pt", "models/lora.pt"},
    WAN: {"config.json", "Wan2.1_VAE.pth", "google/umt5-xxl/tokenizer.json"},
    VIDEO: {"umt5-xxl-enc-fp8_e4m3fn.safetensors"},
}
BASE = "longlive_base.pt"


def size_of(hub, needed=NEEDED):
    return sum(len(hub.repos[repo].files[name]) for repo, names in needed.items() for name in names if is_large(name))


def fetch(root=None, repository=MODEL, force=False, **wishes):
    plan = fetching.make_plan(repository, Wishes(**wishes), root, force)
    fetching.fetch(plan, lambda *told: None)
    return plan


def same(path, data):
    return Path(path).read_bytes() == data


def test_fresh_into_the_cache(hub, capfd):
    """Exactly what is needed, each byte once; sizes are known before, progress ends at them; and it can be loaded."""
    plan = fetching.make_plan(MODEL, Wishes())
    assert hub.sent == 0 and plan.missing == plan.size > size_of(hub)
    wanted = {(repo, name) for repo, names in NEEDED.items() for name in names}
    assert {(str(item.repository), item.file) for item in plan.items} == wanted
    steps = []
    fetching.fetch(plan, lambda *told: steps.append(told))
    assert hub.sent == size_of(hub) and hub.fetched() == {name.rsplit("/")[-1] for _, name in wanted}
    assert steps[-1][1:] == (plan.size, plan.size) and len(steps) > 100
    done = [step[1] for step in steps]
    assert done == sorted(done)
    files = locate(LONGLIVE)
    check(files)
    for path, repo, name in (
        (files.generator, LONGLIVE, "models/longlive_base.pt"),
        (files.lora, LONGLIVE, "models/lora.pt"),
        (files.vae, WAN, "Wan2.1_VAE.pth"),
        (files.config, WAN, "config.json"),
    ):
        assert same(path, hub.repos[repo].files[name]) and Path(constants.HF_HUB_CACHE) in path.parents
    assert files.control is None
    hub.forget()
    assert fetch().complete and hub.sent == 0
    assert capfd.readouterr() == ("", "")


def test_fresh_into_a_folder(hub, tmp_path):
    """As scope lays it out, with the small files that scope looks for; the client's own record lies beside."""
    root = tmp_path / "models"
    fetch(root, control=True, vae="tae")
    check(locate(root, "tae", control=True), control=True)
    for repo, name in ((LONGLIVE, "config.json"), (VIDEO, "config.json"), (WAN, "google/umt5-xxl/spiece.model")):
        assert same(root / repo.split("/")[1] / name, hub.repos[repo].files[name])
    assert not (root / "Wan2.1-T2V-1.3B/Wan2.1_VAE.pth").exists() and not Path(constants.HF_HUB_CACHE).exists()
    assert "other-14B.safetensors" not in hub.fetched() and "diffusion_pytorch_model.safetensors" not in hub.fetched()
    hub.forget()
    from huggingface_hub import snapshot_download

    snapshot_download(LONGLIVE, local_dir=root / "LongLive-1.3B", allow_patterns=["models/*", "config.json"])
    assert hub.sent == 0, "the client takes what is there for its own"
    assert fetch(root, control=True, vae="tae").complete and hub.sent == 0


@pytest.mark.parametrize("into", ["cache", "folder"])
def test_a_broken_connection_is_gone_on_with(hub, tmp_path, into):
    hub.cut = {BASE: [PIECE * 40, PIECE * 30], "lora.pt": [PIECE]}
    root = tmp_path / "models" if into == "folder" else None
    large = sum(item.size for item in fetch(root).items if item.large)
    assert hub.sent == large, "what had arrived was not asked for again"
    asked = [seen.offset for seen in hub.log if seen.path.startswith("/store/") and seen.path.endswith(BASE)]
    assert asked == [0, PIECE * 40, PIECE * 70]
    check(locate(root or LONGLIVE))


@pytest.mark.parametrize("into", ["cache", "folder"])
def test_an_interrupted_download_is_gone_on_with_later(hub, tmp_path, into):
    """What has arrived is kept, and only the rest is fetched; what is not whole is never found."""
    root = tmp_path / "models" if into == "folder" else None
    hub.cut, hub.down_after_cut = {BASE: [PIECE * 100]}, True
    with pytest.raises(OSError, match=r"has answered 503 for daydreamlive/\S+ Go on with\n  longlive-opt"):
        fetch(root)
    first = hub.sent
    assert PIECE * 100 <= first < size_of(hub)
    with pytest.raises(
        FileNotFoundError, match=r"lacks (.|\n)*generator(.|\n)*\n  longlive-optimized download( \S*models)?$"
    ):
        locate(root or LONGLIVE)
    hub.down = False
    hub.forget()
    plan = fetching.make_plan(MODEL, Wishes(), root)
    begun = next(item.begun for item in plan.items if item.file.endswith(BASE))
    assert PIECE * 99 <= begun <= PIECE * 100 and plan.missing < plan.size - begun + 1
    large = sum(item.missing for item in plan.items if item.large)
    fetching.fetch(plan, lambda *told: None)
    assert hub.sent == large
    check(locate(root or LONGLIVE))


def test_a_connection_that_is_reset(hub):
    """Which the client takes for an error of the whole download."""
    hub.cut, hub.resets = {BASE: [PIECE * 40], "lora.pt": [PIECE]}, True
    fetch()
    assert len([seen for seen in hub.log if "/store/" in seen.path and seen.path.endswith(BASE)]) == 2
    assert hub.sent < size_of(hub) + 8 * PIECE
    check(locate(LONGLIVE))


def test_a_server_without_ranges(hub):
    """What was begun is then begun anew, and is still right."""
    hub.cut, hub.ranges = {BASE: [PIECE * 10]}, False
    fetch()
    check(locate(LONGLIVE))


def begun_in(folder):
    return [path for path in Path(folder).rglob("*.incomplete")]


@pytest.mark.parametrize("into", ["cache", "folder"])
def test_wrong_bytes(hub, tmp_path, into):
    """They never get their name, and nothing of them is gone on with."""
    root = tmp_path / "models" if into == "folder" else None
    hub.spoiled = {BASE}
    again = "Try again:\n  longlive-optimized download" + (f" {root}" if root else "")
    with pytest.raises(CheckpointError, match=r"longlive_base\.pt has arrived with other bytes") as caught:
        fetch(root)
    assert again in str(caught.value)
    assert not [*tmp_path.rglob(BASE)] and not [path for path in begun_in(tmp_path) if path.stat().st_size > 4_000_000]
    with pytest.raises(FileNotFoundError):
        locate(root or LONGLIVE)
    hub.spoiled = set()
    fetch(root)
    check(locate(root or LONGLIVE))


def test_wrong_bytes_of_an_earlier_download(hub):
    """What lay there is nothing of the hub's: told by the checksum of the whole."""
    hub.cut, hub.down_after_cut = {BASE: [PIECE * 10]}, True
    with pytest.raises(OSError, match="503"):
        fetch()
    begun = next(path for path in begun_in(constants.HF_HUB_CACHE) if path.stat().st_size == PIECE * 10)
    begun.write_bytes(bytes(PIECE * 10))
    hub.down = False
    with pytest.raises(CheckpointError, match="other bytes"):
        fetch()
    assert not begun.exists()
    fetch()
    check(locate(LONGLIVE))


def test_wrong_bytes_of_a_small_file(hub, monkeypatch):
    monkeypatch.setattr(fetching, "digest", lambda path, digits: "0" * digits if digits == 40 else digest(path, digits))
    with pytest.raises(CheckpointError, match=r"config\.json has arrived with other bytes"):
        fetch()
    monkeypatch.undo()


def test_too_small_a_disk_is_told_before(hub, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    with pytest.raises(OSError, match=r"cache has too little room: 8\.79 MB are needed, 5 MB are free.*HF_HOME"):
        fetch()
    assert hub.sent == 0


class Quota:
    """A file on a disk that has room for so many bytes more."""

    one = threading.Lock()

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        with self.one:
            taken = self.file.write(data[: self.room[0]])
            self.room[0] -= taken
        if taken < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)
        return taken

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_disk_that_gets_full(hub, monkeypatch):
    """Others have written meanwhile. What has arrived stays, and is gone on with once there is room."""
    room, opened = [3_000_000], fetching._open
    monkeypatch.setattr(fetching, "_open", lambda path: Quota(opened(path), room))
    with pytest.raises(OSError, match=r"cache is full, .* is not complete. Make room, then go on with\n  longlive-opt"):
        fetch()
    hub.forget()
    room[0] = 10**9
    plan = fetching.make_plan(MODEL, Wishes())
    large = [item for item in plan.items if item.large]
    kept = sum(item.size - item.missing for item in large)
    assert kept == 3_000_000, "what there was room for"
    fetching.fetch(plan, lambda *told: None)
    assert hub.sent == size_of(hub) - kept
    check(locate(LONGLIVE))


@pytest.fixture
def offline(hub, monkeypatch, request):
    """Once called, there is no network: by the client's own switch, or because nobody answers."""

    def go():
        if request.param == "switch":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        else:
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        hub.forget()

    return go


WAYS = pytest.mark.parametrize("offline", ["switch", "nobody"], indirect=True)


@WAYS
def test_offline_with_all_of_it(hub, offline, tmp_path):
    fetch()
    offline()
    engine = LongLiveEngine(LONGLIVE, OptimizationConfig(height=32, width=32))
    assert engine.generate_block(BlockRequest("a fox")).shape[1:] == (32, 32, 3) and hub.log == []


@WAYS
def test_offline_with_nothing(hub, offline):
    offline()
    reason = r"(HF_HUB_OFFLINE is set: \S+|http://127.0.0.1:9 cannot be reached, \S+) cannot be downloaded"
    command = r"Where the hub can be reached:\n  longlive-optimized download --vace$"
    with pytest.raises(
        ConnectionError, match=f"^model_path: {LONGLIVE} is not on this machine as a whole, and {reason}"
    ) as caught:
        LongLiveEngine(LONGLIVE, OptimizationConfig(control=True))
    assert re.search(command, str(caught.value)) and hub.log == []


@WAYS
def test_offline_with_a_part(hub, offline):
    """An interrupted download is never taken for a model."""
    hub.cut, hub.down_after_cut = {"lora.pt": [PIECE]}, True
    with pytest.raises(OSError, match="503"):
        fetch()
    offline()
    with pytest.raises(ConnectionError, match="not on this machine as a whole"):
        fetching.ensure(LONGLIVE)
    with pytest.raises(FileNotFoundError, match=r"lacks (.|\n)*lora(.|\n)*\n  longlive-optimized download"):
        locate(LONGLIVE)


@pytest.mark.parametrize("given", [None, TOKEN])
@pytest.mark.parametrize("gated", [False, True])
def test_a_repository_that_may_not_be_read(hub, monkeypatch, caplog, given, gated):
    """Its refusal quotes the token, as servers may; no word, cause or log of ours does."""
    caplog.set_level(logging.INFO)
    hub.repos[LONGLIVE].token, hub.repos[LONGLIVE].gated = "hf_another", gated
    if given:
        monkeypatch.setenv("HF_TOKEN", given)
    told = rf"{LONGLIVE} is gated \(40[13]\): ask for access at" if gated else rf"does not show {LONGLIVE} \(401\)"
    with pytest.raises(PermissionError, match=rf"{told}(.|\n)*hf auth login, or set HF_TOKEN") as caught:
        LongLiveEngine(LONGLIVE)
    assert hub.sent == 0
    assert {seen.authorization for seen in hub.log} == {f"Bearer {given}" if given else None}
    with pytest.raises(PermissionError) as direct:
        fetching.make_plan(MODEL, Wishes())
    trace = "".join(line for each in (caught, direct) for line in traceback.format_exception(each.value))
    assert TOKEN not in trace and TOKEN not in caplog.text and "may not read it" not in trace


def test_a_private_repository_with_its_token(hub, monkeypatch):
    """The token goes to the hub, and not on to the store that the hub sends to."""
    hub.repos[LONGLIVE].token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.cut = {BASE: [PIECE * 10]}
    fetch()
    to_store = {seen.authorization for seen in hub.log if seen.path.startswith("/store/")}
    assert to_store == {None} and f"Bearer {TOKEN}" in {seen.authorization for seen in hub.log}
    assert locate(LONGLIVE).generator.is_file()


def test_revisions(hub):
    """Each has its own files; what both have in common is fetched once; scope's folder says of none which it has."""
    one = hub.repos[LONGLIVE].files
    other = one | {"models/longlive_base.pt": one["models/longlive_base.pt"][:-1] + b"x"}
    commit = hub.repos[LONGLIVE].commit(other, "v2", "refs/pr/1")
    scope = Path(os.environ["DAYDREAM_SCOPE_MODELS_DIR"])
    write(scope / "LongLive-1.3B/models/longlive_base.pt", one["models/longlive_base.pt"])
    fetch()
    hub.forget()
    for revision in ("v2", "refs/pr/1", commit):
        name = f"{LONGLIVE}@{revision}"
        if revision != commit:  # which is there by then
            with pytest.raises(FileNotFoundError, match=f"lacks generator, (.|\n)*download --model {name}"):
                locate(name)
        fetching.ensure(name, progress=lambda *told: None)
        assert same(locate(name).generator, other["models/longlive_base.pt"])
        assert locate(LONGLIVE).generator.is_relative_to(scope)
    assert hub.sent == len(other["models/longlive_base.pt"])
    with pytest.raises(FileNotFoundError, match=f"{LONGLIVE} has no revision v3 at http"):
        fetching.ensure(f"{LONGLIVE}@v3")


def test_a_new_commit(hub):
    """Starting goes on with what is here; ``download`` asks, and fetches what has changed alone."""
    fetch()
    changed = hub.repos[LONGLIVE].files | {"models/lora.pt": bytes(200_000)}
    hub.repos[LONGLIVE].commit(changed, "main")
    hub.forget()
    fetching.ensure(LONGLIVE)
    assert hub.log == []
    plan = fetching.make_plan(MODEL, Wishes())
    assert plan.missing == 200_000
    fetching.fetch(plan, lambda *told: None)
    assert hub.sent == 200_000 and same(locate(LONGLIVE).lora, bytes(200_000))
    assert same(locate(LONGLIVE).generator, changed["models/longlive_base.pt"])


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def scope_has(hub, **others):
    """Scope's folder as scope fills it, without records; ``others`` by the file's first word."""
    scope = Path(os.environ["DAYDREAM_SCOPE_MODELS_DIR"])
    for repo, names in NEEDED.items():
        for name in names:
            data = others.get(Path(name).name.split("_")[0].split(".")[0], hub.repos[repo].files[name])
            if data is not None:
                write(scope / repo.split("/")[1] / name, data)
    return scope


def test_what_scope_has_is_used_where_it_is(hub):
    scope = scope_has(hub)
    fetching.ensure(LONGLIVE)
    assert hub.log == [] and locate(LONGLIVE).generator == scope / "LongLive-1.3B/models/longlive_base.pt"
    assert fetch().complete and hub.sent == 0


def test_what_scope_lacks_is_fetched_alone(hub):
    scope = scope_has(hub, Wan2=None)
    fetching.ensure(LONGLIVE, progress=lambda *told: None)
    assert hub.sent == len(hub.repos[WAN].files["Wan2.1_VAE.pth"])
    files = locate(LONGLIVE)
    assert files.text.is_relative_to(scope) and files.vae.is_relative_to(constants.HF_HUB_CACHE)
    check(files)


def test_what_scope_has_in_another_version(hub):
    """It is not taken for the hub's, and is left as it is."""
    scope = scope_has(hub, lora=b"old")
    fetch()
    assert same(locate(LONGLIVE).lora, hub.repos[LONGLIVE].files["models/lora.pt"])
    assert same(scope / "LongLive-1.3B/models/lora.pt", b"old")
    hub.forget()
    assert fetch().complete and hub.sent == 0


def test_nobody_elses_model_is_taken_from_scope(hub):
    scope_has(hub)
    hub.repos["someone/LongLive-1.3B"] = Repo()
    base = bytes(len(hub.repos[LONGLIVE].files["models/longlive_base.pt"]))
    hub.repos["someone/LongLive-1.3B"].commit({"models/longlive_base.pt": base}, "main")
    fetch(repository=Repository("someone/LongLive-1.3B"))
    assert hub.sent == len(base) and same(locate("someone/LongLive-1.3B").generator, base)


def test_a_model_without_lora(hub, monkeypatch, caplog):
    """That the hub has none is noted, so that it is known offline."""
    hub.repos["a/merged"] = Repo()
    hub.repos["a/merged"].commit(
        {"models/longlive_base.pt": hub.repos[LONGLIVE].files["models/longlive_base.pt"]}, "main"
    )
    fetch(repository=Repository("a/merged"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetching.ensure("a/merged")
    assert locate("a/merged").lora is None and "no lora.pt beside" in caplog.text


def test_what_is_no_model(hub):
    hub.repos["a/b"] = Repo()
    hub.repos["a/b"].commit({"README.md": b""}, "main")
    with pytest.raises(
        FileNotFoundError, match=r"a/b has no models/longlive_base\.pt on the hub, and so is no generator"
    ):
        fetching.ensure("a/b")
    with pytest.raises(
        PermissionError, match=r"^model_path: there is no path models/typo, and http.* does not show models/typo"
    ):
        LongLiveEngine("models/typo")


def test_a_path_that_exists_is_one(hub, tmp_path, monkeypatch):
    folder = tmp_path / "here" / LONGLIVE
    fetch(folder.parent)
    monkeypatch.chdir(tmp_path / "here")
    hub.forget()
    fetching.ensure(LONGLIVE)
    assert hub.log == [] and locate(LONGLIVE).generator == folder / "models/longlive_base.pt"


@pytest.mark.parametrize(
    "text", ["a", "a/b/c", "/a/b", "./a", "~/a", "a/b@", "a/b@c@d", "a/..", "a b/c", Path("a/b"), "a\\b"]
)
def test_what_names_no_repository(text):
    assert as_repository(text) is None


def test_a_folders_own_files_are_not_replaced(hub, tmp_path):
    root, mine = tmp_path / "models", b"trained for weeks"
    path = root / "LongLive-1.3B/models/longlive_base.pt"
    write(path, mine)
    with pytest.raises(FileExistsError, match=rf"{path} is there, and is not models/{BASE} of .*: --force replaces it"):
        fetch(root)
    assert same(path, mine) and hub.sent == 0
    fetch(root, force=True)
    check(locate(root))


def test_a_folder_of_an_older_commit_is_brought_up_to_date(hub, tmp_path):
    root = tmp_path / "models"
    fetch(root)
    new = bytes(len(hub.repos[LONGLIVE].files["models/lora.pt"]))  # told by what was noted of the old one
    hub.repos[LONGLIVE].commit(hub.repos[LONGLIVE].files | {"models/lora.pt": new}, "main")
    hub.forget()
    fetch(root)
    assert hub.sent == len(new) and same(locate(root).lora, new)


def test_longlives_own_layout_is_completed(hub, tmp_path):
    """Where a part lies as LongLive has it, it is not fetched; what is missing is found where scope has it."""
    root = tmp_path / "own"
    for name in ("longlive_base.pt", "lora.pt"):
        write(root / "longlive_models/models" / name, hub.repos[LONGLIVE].files[f"models/{name}"])
    write(
        root / "wan_models/Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth",
        hub.repos[WAN_AI].files["models_t5_umt5-xxl-enc-bf16.pth"],
    )
    fetch(root)
    assert not hub.fetched() & {BASE, "lora.pt", "umt5-xxl-enc-fp8_e4m3fn.safetensors"}
    check(locate(root))


@pytest.mark.parametrize("into", ["cache", "folder"])
def test_force_finds_what_is_damaged(hub, tmp_path, into):
    root = tmp_path / "models" if into == "folder" else None
    fetch(root)
    path = locate(root or LONGLIVE).generator
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    times = path.stat().st_mtime - 100
    os.utime(path, (times, times))
    hub.forget()
    assert fetch(root).complete
    fetch(root, force=True)
    assert hub.fetched() == {BASE} and same(path, hub.repos[LONGLIVE].files["models/longlive_base.pt"])


@pytest.mark.parametrize("into", ["cache", "folder"])
def test_the_error_of_a_damaged_file_says_what_mends_it(hub, tmp_path, into):
    """The command that it names is carried out, and it loads."""
    root = tmp_path / "models" if into == "folder" else None
    fetch(root)
    path = locate(root or LONGLIVE).vae
    os.truncate(path, 1_000_000)
    with pytest.raises(CheckpointError, match="download it again") as caught:
        check(locate(root or LONGLIVE))
    words = str(caught.value).splitlines()[-1].split()
    assert words == ["longlive-optimized", "download", *([str(root)] if root else []), "--force"]
    fetch(root, force=True)
    check(locate(root or LONGLIVE))


def test_a_folder_is_filled_from_this_machine(hub, tmp_path):
    """From the cache and from scope's folder; but not with what is damaged there."""
    scope_has(hub, Wan2=b"", longlive=bytes(len(hub.repos[LONGLIVE].files["models/longlive_base.pt"])))
    fetch()
    hub.forget()
    fetch(tmp_path / "models")
    assert hub.sent == len(hub.repos[LONGLIVE].files["models/longlive_base.pt"]) + 6000
    check(locate(tmp_path / "models"))


def test_two_at_once(hub):
    """Each file is fetched by one of them."""
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(fetch) for _ in range(2)]:
            done.result()
    assert hub.sent == size_of(hub)
    check(locate(LONGLIVE))


def test_an_engine_downloads_what_it_wants(hub, caplog):
    """As its config asks; the size is logged first, progress is told as of loading."""
    told = []
    config = OptimizationConfig(height=32, width=32, text_precision="bf16", vae_type="tae")
    engine = LongLiveEngine(LONGLIVE, config, progress=lambda *step: told.append(step))
    assert re.search(rf"{LONGLIVE}: \S+ MB are downloaded to {constants.HF_HUB_CACHE}", caplog.text)
    assert told[0][0].startswith(LONGLIVE) and told[-1][0] in ("VAE", "text encoder", "generator")
    assert engine.files.text.suffix == ".pth" and engine.files.vae.name == "taew2_1.pth"
    assert not hub.fetched() & {"Wan2.1_VAE.pth", "umt5-xxl-enc-fp8_e4m3fn.safetensors"}
    with pytest.raises(FileNotFoundError, match=r"lacks vae; get what is missing by\n  \S+ download --vae lighttae$"):
        engine.use_vae("lighttae")


def test_without_a_progress_function_there_is_the_clients_bar(hub, capfd):
    fetching.ensure(LONGLIVE)
    err = capfd.readouterr().err
    assert err.splitlines()[-1].split("|")[0].strip() == f"{LONGLIVE}: 100%"
