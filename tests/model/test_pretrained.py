"""Files of weights: PyTorch layouts in, ours out and back, what is refused, and how a run starts from them."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsada_hpc.cli import main
from mmsada_hpc.config import config_hash, load_config
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.i3d import I3d
from mmsada_hpc.model.pretrained import check_pretrained, load_pretrained, open_pretrained, save_pretrained
from mmsada_hpc.model.weights.convert import as_ours, convert
from mmsada_hpc.model.weights.files import WeightsFile, read_weights
from mmsada_hpc.train.checkpoint import Checkpoints, Position
from mmsada_hpc.train.module import new_module
from tests.model.plain_i3d import hassony2_state, piergiaj_state, plain_i3d
from tests.model.plain_weights import Params, random_params
from tests.train.test_law1 import tiny_run
from tests.train.test_train import start

BUNDLES = Path(__file__).resolve().parent / "tf_bundle"
WIDTH = 0.0625
STEM = "Conv3d_1a_7x7"


def scaled(channels: int) -> int:
    """As `I3d` makes a network of WIDTH."""
    return max(4, round(channels * WIDTH / 4) * 4)


def small(stem_in: int = 3, *, gamma: bool = False) -> Params:
    params = random_params(stem_in, gamma=gamma, classes=5, scaled=scaled)
    return {name: array.astype(np.float32) for name, array in params.items()}


def piergiaj_file(path: Path, *, gamma: bool = True, stem_in: int = 3, change: Any = None) -> Path:
    params = small(stem_in, gamma=gamma)
    ones = {f"{n.rpartition('/')[0]}/gamma": np.ones_like(a) for n, a in params.items() if n.endswith("/beta")}
    state = piergiaj_state(ones | params)
    if change is not None:
        change(state)
    torch.save(state, path)
    return path


def ours(folder: Path, *, stem_in: int = 3) -> Path:
    out = folder / f"{stem_in}.safetensors"
    convert(piergiaj_file(folder / "source.pt", stem_in=stem_in), out)
    return out


def refused(call: Any, *args: Any, match: str, **kwargs: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_ours_goes_back_to_both_pytorch_layouts(tmp_path: Path) -> None:
    source, mine = piergiaj_file(tmp_path / "in.pt", gamma=False), tmp_path / "mine.safetensors"
    convert(source, mine)
    want = torch.load(source, weights_only=True)
    convert(mine, tmp_path / "back.pt", to="piergiaj")
    got = torch.load(tmp_path / "back.pt", weights_only=True)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want), "gamma 1 changes no bit"
    convert(mine, tmp_path / "back.pth", to="hassony2")
    expected = hassony2_state(small()).keys()
    assert expected <= torch.load(tmp_path / "back.pth", weights_only=True).keys()
    again = convert(tmp_path / "back.pth", tmp_path / "again.safetensors")
    first = open_pretrained(mine)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_statistics_that_differ_by_domain_do_not_go_back(tmp_path: Path) -> None:
    content = open_pretrained(ours(tmp_path))
    content.tensors[f"{STEM}.bn.running_mean_DC"][1] += 1
    save_pretrained(tmp_path / "trained.safetensors", content)
    refused(
        convert,
        tmp_path / "trained.safetensors",
        tmp_path / "out.pt",
        to="piergiaj",
        match=r"Conv3d_1a_7x7\.bn\.running_mean_DC keeps other running statistics for source than for target",
    )


def test_the_file_says_where_it_comes_from_and_is_reproducible(tmp_path: Path) -> None:
    file = ours(tmp_path)
    content, before = open_pretrained(file), file.read_bytes()
    assert content.metadata["format"] == "mmsada-hpc i3d" and content.metadata["version"] == "1"
    assert content.metadata["source"] == "PyTorch, piergiaj's layout" and content.stream == "rgb"
    assert content.metadata["source_sha256"] == read_weights(tmp_path / "source.pt").sha256
    assert content.metadata["folded_gamma"] == "57"
    convert(tmp_path / "source.pt", file)
    assert file.read_bytes() == before


def test_a_scale_is_kept_in_training_up_to_the_last_units() -> None:
    """By batch statistics the converted network is the plain one whose last four scales are in the filters, where those
    statistics undo them.
    """
    params: Params = {name: array.astype(np.float64) for name, array in small(gamma=True).items()}
    state = {name: tensor.numpy() for name, tensor in piergiaj_state(params).items()}
    given = as_ours(WeightsFile(Path("x.pt"), "piergiaj", state, sha256=""))
    network = I3d(3, GroupContext(group_size=2, test="mixture"), width=WIDTH).double()
    network.load_state_dict({n: t for n, t in given.tensors.items() if not n.startswith("logits")})
    clips = torch.rand(2, 3, 8, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    filters = dict(params)
    for branch in ("0/Conv3d_0a_1x1", "1/Conv3d_0b_3x3", "2/Conv3d_0b_3x3", "3/Conv3d_0b_1x1"):
        scale, w = f"Mixed_5c/Branch_{branch}/batch_norm/gamma", f"Mixed_5c/Branch_{branch}/conv_3d/w"
        filters |= {w: params[w] * params[scale], scale: np.ones_like(params[scale])}
    with torch.no_grad():
        got = network(clips)
        torch.testing.assert_close(got, plain_i3d(filters, clips, batch=True)[0], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(got, plain_i3d(params, clips, batch=True)[0], atol=1e-3)


def drop(name: str) -> Any:
    return lambda state: state.pop(name)


def put(name: str, value: torch.Tensor) -> Any:
    return lambda state: state.update({name: value})


def rename(old: str, new: str) -> Any:
    return lambda state: state.update({new: state.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("Mixed_4b.b2b.bn.bias"), r"Mixed_4b\.b2b\.bn\.bias is missing$"),
        (
            rename("Mixed_4b.b2b.bn.bias", "Mixed_4b.b2c.bn.bias"),
            r"Mixed_4b\.b2b\.bn\.bias is missing; it has Mixed_4b\.b2c\.bn\.bias instead",
        ),
        (
            put("Mixed_4b.b2c.bn.bias", torch.ones(3)),
            r"Mixed_4b\.b2c\.bn\.bias does not belong to I3D; the nearest that does is Mixed_4b\.b.*\.bn\.bias",
        ),
        (put("Mixed_3b.b0.bn.bias", torch.ones(3)), r"Mixed_3b\.b0\.bn\.bias has the shape \(3,\) where \(4,\)"),
        (
            put("Mixed_3b.b0.conv3d.weight", torch.ones(4, 12, 3, 3, 3)),
            r"Mixed_3b\.b0\.conv3d\.weight has the shape \(4, 12, 3, 3, 3\) where \(4, 12, 1, 1, 1\)",
        ),
        (put("Mixed_3b.b0.bn.running_var", -torch.ones(4)), r"Mixed_3b\.b0\.bn\.running_var holds a negative"),
        (put("Mixed_3b.b0.bn.bias", torch.full((4,), torch.nan)), r"Mixed_3b\.b0\.bn\.bias holds a value that is not"),
        (put("logits.conv3d.bias", torch.ones(6)), r"logits\.conv3d\.weight has the shape \(5, 64\) where \(6, 64\)"),
        (lambda state: state.clear(), "holds no I3D weights in a layout known here"),
    ],
)
def test_a_wrong_tensor_is_named(change: Any, message: str, tmp_path: Path) -> None:
    source = piergiaj_file(tmp_path / "in.pt", change=change)
    refused(convert, source, tmp_path / "out.safetensors", match=r"in\.pt: " + message)
    assert not (tmp_path / "out.safetensors").exists()


def test_what_newer_torch_and_wrappers_add_is_passed_over(tmp_path: Path) -> None:
    plain = convert(piergiaj_file(tmp_path / "in.pt"), tmp_path / "a.safetensors")

    def wrap(state: dict[str, Any]) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in state.items()}
        tensors["module.Mixed_3b.b0.bn.num_batches_tracked"] = torch.tensor(7)
        state.clear()
        state["state_dict"] = tensors

    wrapped = convert(piergiaj_file(tmp_path / "wrapped.pt", change=wrap), tmp_path / "b.safetensors")
    assert all(torch.equal(tensor, wrapped.tensors[name]) for name, tensor in plain.tensors.items())
    state = torch.load(tmp_path / "in.pt", weights_only=True)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = convert(tmp_path / "old.pt", tmp_path / "c.safetensors")
    assert all(torch.equal(tensor, old.tensors[name]) for name, tensor in plain.tensors.items())


class Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_could_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    torch.save({"x": Touch(tmp_path / "ran")}, tmp_path / "bad.pt")
    refused(read_weights, tmp_path / "bad.pt", match=r"bad\.pt: holds more than tensors, and unpickling that could run")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_weights_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not weights")
    refused(read_weights, tmp_path / "text", match="text: neither a PyTorch nor a safetensors file")
    refused(read_weights, tmp_path / "none", match=r"none: no such file \(nor none\.index")
    cut = piergiaj_file(tmp_path / "cut.pt")
    cut.write_bytes(cut.read_bytes()[:5000])
    refused(read_weights, cut, match=r"cut\.pt: not a whole PyTorch file")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    refused(read_weights, tmp_path / "list.pt", match=r"list\.pt: holds no state dict")


def test_a_checkpoint_of_both_streams_wants_to_be_told_which(tmp_path: Path) -> None:
    both = {f"RGB/inception_i3d/{n}": a for n, a in small(3).items()}
    both |= {f"Flow/inception_i3d/{n}": a for n, a in small(2).items()}
    file = WeightsFile(Path("model.ckpt"), "tf", both, sha256="")
    refused(as_ours, file, match=r"model\.ckpt: holds both streams; say --stream rgb or --stream flow")
    assert [as_ours(file, stream=s).tensors[f"{STEM}.conv3d.weight"].shape[1] for s in ("rgb", "flow")] == [3, 2]
    refused(convert, BUNDLES / "rgb", tmp_path / "x", stream="flow", match="holds rgb alone, not --stream flow")
    refused(convert, BUNDLES / "flow_no_prefix", tmp_path / "x", stream="rgb", match="it is flow, not --stream rgb")


def test_a_file_of_another_stream_or_width_is_refused_by_key(tmp_path: Path) -> None:
    file = ours(tmp_path)
    check_pretrained({"rgb": file}, width=WIDTH)
    refused(
        check_pretrained, {"flow": file}, width=WIDTH, match=r"model\.pretrained\.flow=.* holds rgb weights: 3 chan"
    )
    refused(check_pretrained, {"rgb": file}, width=0.25, match=r"model\.pretrained\.rgb=.* is of another width: Conv3d")
    refused(check_pretrained, {"rgb": tmp_path / "source.pt"}, width=WIDTH, match="weights convert")
    refused(check_pretrained, {"rgb": tmp_path / "nowhere"}, width=WIDTH, match="nowhere: no such file")


def test_a_run_starts_from_the_files_all_but_the_heads(tmp_path: Path) -> None:
    rgb, flow = ours(tmp_path), ours(tmp_path, stem_in=2)
    settings = [f"model.width={WIDTH}", "seed=3"]
    files = [f"model.pretrained.rgb={rgb}", f"model.pretrained.flow={flow}"]
    bare = new_module(load_config(None, settings), num_classes=8).state_dict()
    made = new_module(load_config(None, [*settings, *files]), num_classes=8).state_dict()
    for stream, file in (("rgb", rgb), ("flow", flow)):
        for name, tensor in open_pretrained(file).tensors.items():
            if not name.startswith("logits"):
                assert torch.equal(made[f"network.streams.{stream}.{name}"], tensor)
    heads = [name for name in made if name.startswith("method.")]
    assert heads and all(torch.equal(made[name], bare[name]) for name in heads), "drawn from the seed as before"
    mean_DC = made[f"network.streams.rgb.{STEM}.bn.running_mean_DC"]
    assert torch.equal(mean_DC[0], mean_DC[1]) and bool((mean_DC != 0).any())


def test_the_config_hash_follows_the_contents_and_not_the_path(tmp_path: Path) -> None:
    def hashed(path: Path) -> str:
        return config_hash(load_config(None, [f"model.pretrained.rgb={path}"]))

    file = ours(tmp_path)
    shutil.copy(file, tmp_path / "copy")
    first = hashed(file)
    assert first == hashed(tmp_path / "copy") != config_hash(load_config(None))
    content = open_pretrained(file)
    content.tensors[f"{STEM}.bn.bias"][0] += 1
    save_pretrained(file, content)
    assert hashed(file) != first
    refused(hashed, tmp_path / "gone", match=r"model\.pretrained\.rgb=.*gone: No such file")


def test_loading_gives_both_domains_the_same_statistics_and_touches_nothing_else(tmp_path: Path) -> None:
    network = I3d(3, GroupContext(group_size=1, test="target"), width=WIDTH).eval()
    load_pretrained(network, ours(tmp_path), stream="rgb")
    mean, _ = network.Conv3d_1a_7x7.bn.test_statistics()
    np.testing.assert_array_equal(mean, open_pretrained(ours(tmp_path)).tensors[f"{STEM}.bn.running_mean_DC"][0])
    assert all(p.requires_grad for p in network.parameters())


def test_a_training_run_says_what_it_starts_from_and_starts_there(tiny_store: Store, tmp_path: Path) -> None:
    rgb, flow = ours(tmp_path), ours(tmp_path, stem_in=2)
    settings = (f"model.pretrained.rgb={rgb}", f"model.pretrained.flow={flow}", f"model.width={WIDTH}")
    still = ("train.stage1.lr=1e-12", "train.stage2.lr=1e-12", "train.engine=ddp", "checkpoint.every=1")
    process = start(tiny_run(tiny_store, tmp_path / "run", *settings, *still))
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert "starting from rgb from source.pt (PyTorch, piergiaj's layout, sha256 " in out
    assert "starting from flow from source.pt" in out and "running statistics will be left" not in out
    state = Checkpoints(tmp_path / "run", keep=1, config_hash=config_hash(load_config(tmp_path / "run/config.yaml")))
    trained = state.newest_whole()
    assert trained is not None and trained.state.position == Position(2, 2)
    for stream, file in (("rgb", rgb), ("flow", flow)):
        weight = open_pretrained(file).tensors["Mixed_5c.b0.conv3d.weight"]
        got = trained.state.model[f"network.streams.{stream}.Mixed_5c.b0.conv3d.weight"]
        torch.testing.assert_close(got, weight, rtol=0, atol=1e-7)


def test_the_command_converts_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rgb.safetensors"
    assert main(["weights", "convert", str(BUNDLES / "rgb"), "--out", str(out), "--stream", "rgb"]) == 0
    assert "rgb from rgb (DeepMind TensorFlow checkpoint, sha256 " in capsys.readouterr().out
    assert main(["weights", "show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "layout      ours" in shown and "rgb, 8 features, 7 classes" in shown
    assert "Mixed_5b.b2b.conv3d.weight" in shown and "source_sha256" in shown
    assert main(["weights", "show", str(BUNDLES / "flow_no_prefix.index")]) == 0
    assert "I3D         flow, 8 features, 7 classes" in capsys.readouterr().out
    assert main(["weights", "convert", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "error: " in capsys.readouterr().err
    missing = str(tmp_path / "no" / "folder" / "x")
    assert main(["weights", "convert", str(BUNDLES / "rgb"), "--out", missing]) == 2
    assert f"error: {missing}: could not be written" in capsys.readouterr().err


def test_the_room_needs_neither_deepspeed_nor_pydantic() -> None:
    code = (
        "import sys, mmsada_hpc.model.weights.convert; "
        "print([m for m in ('deepspeed', 'nvidia.dali', 'pydantic', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
