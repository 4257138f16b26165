"""A config is layered, frozen and typed; every mistake is one line that names its dotted key."""

from pathlib import Path

import pydantic
import pytest

from mmsada_hpc.config import Config, build_config, config_folder, config_hash, dump_config, load_config
from mmsada_hpc.config_keys import describe_keys, dotted_keys
from mmsada_hpc.errors import UserError
from mmsada_hpc.submit.grid import is_grid, read_grid


def test_default_yaml_names_every_key_and_equals_the_defaults_in_the_code() -> None:
    config = load_config(None)
    assert config == build_config({})
    for key in dotted_keys(Config):
        assert f"{key.rsplit('.', 1)[-1]}:" in (config_folder() / "default.yaml").read_text(), key


def test_every_key_is_documented() -> None:
    text = describe_keys(load_config(None))
    assert "None" not in [line.strip() for line in text.splitlines()]
    assert text.count("\n    ") == len(list(dotted_keys(Config)))


def test_overrides_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text("recipe: paper\ntrain: {stage2: {lr: 0.5}, global_batch: 64}\n")
    config = load_config(run, ["train.global_batch=32", "data.source=[D1]"])
    assert (config.train.stage2.lr, config.train.global_batch, config.data.source) == (0.5, 32, ("D1",))
    assert config.model.logits_per_class == 1, "from the recipe"


def test_the_two_recipes_differ_where_the_paper_and_the_code_disagree() -> None:
    released, paper = load_config(None), load_config(None, ["recipe=paper"])
    assert (released.train.stage2.lr, paper.train.stage2.lr) == (0.01, 0.001)
    assert (released.model.batch_norm.test, paper.model.batch_norm.test) == ("mixture", "target")
    assert (released.data.crops, paper.data.crops) == ("released", "tsn")
    assert (released.model.logits_per_class, paper.model.logits_per_class) == (2, 1)


def test_a_config_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load_config(None).train.stage1.lr = 1.0


def test_a_dumped_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(None, ["seed=7", "data.target=[D2, D3]"])
    (tmp_path / "dump.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dump.yaml") == config


def test_the_hash_covers_what_decides_the_result_and_not_the_machine() -> None:
    base = config_hash(load_config(None))
    assert (
        config_hash(
            load_config(None, ["run.dir=elsewhere", "train.micro_batch=32", "data.threads=3", "checkpoint.every=1"])
        )
        == base
    )
    assert config_hash(load_config(None, ["seed=1"])) != base
    assert config_hash(load_config(None, ["train.stage1.lr=0.02"])) != base


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.globl_batch=3", "train.globl_batch: unknown key; did you mean train.global_batch?"),
        ("train.lr=1", "did you mean train.stage1.lr or train.stage2.lr?"),
        ("modell.width=1", "modell: unknown key; did you mean model?"),
        ("train.precision=fp8", "train.precision: got 'fp8': should be 'fp32', 'bf16' or 'fp64'"),
        ("seed=x", "seed: got 'x': should be a valid integer"),
        ("seed=-1", "seed: got -1"),
        ("data.num_frames=15", "data.num_frames: got 15: should be a multiple of 2"),
        ("model.dropout=1", "model.dropout: got 1"),
        ("recipe=mine", "recipe: got 'mine': should be 'released' or 'paper'"),
        ("train=3", "train: got 3"),
        ("train.precision=fp64", "train.engine=ddp"),
        ("data.source=[A", "not a YAML value"),
        ("seed", "key=value"),
        ("eval.sets=[target]", "eval.sets: 'target' is not source/SPLIT"),
        ("eval.checkpoints=[9000]", "eval.checkpoints: 9000 is not a step of stage 2"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_domain_may_not_be_a_source_domain() -> None:
    with pytest.raises(UserError, match="both name D1"):
        load_config(None, ["data.source=[D1]", "data.target=[D1]"])


def test_zero_needs_deepspeed() -> None:
    with pytest.raises(UserError, match=r"zero_stage=1 needs train.engine=deepspeed"):
        load_config(None, ["train.engine=ddp", "train.zero_stage=1"])


def test_a_file_that_is_not_there_or_not_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(UserError, match=r"broken.yaml: not valid YAML"):
        load_config(broken)
    broken.write_text("- 1")
    with pytest.raises(UserError, match="expected `key: value` lines, found a list"):
        load_config(broken)


@pytest.mark.parametrize(
    "path",
    sorted(p.relative_to(config_folder()) for f in (".", "epic") for p in (config_folder() / f).glob("*.yaml")),
    ids=str,
)
def test_every_committed_config_is_valid_and_opens_with_a_comment(path: Path) -> None:
    assert read_grid(path).runs if is_grid(path) else load_config(path)
    assert (config_folder() / path).read_text().startswith("# ")
