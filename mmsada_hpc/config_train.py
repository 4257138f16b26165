"""The `train` section of the config: engine, batch, optimiser, rates and lengths."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the config: frozen, without unknown keys, each field told in a line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Decay = Annotated[float, Field(ge=0, lt=1)]


class StageConfig(Section):
    steps: int = Field(ge=0)
    """Optimiser updates, of `train.base_batch` clips where `train.lengths` is samples."""
    lr: float = Field(gt=0)
    """Learning rate, constant inside the stage after the warm-up; at `train.base_batch` where `train.lr_rule` is not
    fixed.
    """
    warmup_steps: int = Field(0, ge=0)
    """Updates (counted as `steps`) over which the rate rises linearly, Goyal et al. 2017; 0 as published."""
    loss_scale: float = Field(1.0, gt=0)
    """Factor on the classification and correspondence losses and on the peak reversal weight; the discriminators' own
    loss keeps weight 1 (released: 1, then 0.2).
    """


class TrainConfig(Section):
    engine: Literal["deepspeed", "ddp"] = "deepspeed"
    """deepspeed is the product, ddp the plain yardstick (and the only one for fp64)."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage; 25 M parameters do not need more than 0."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16 = fp32 weights under bf16 autocast, which also sets the gradient communication dtype; fp64 is for tests."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes a GPU where torch sees one."""
    memory_format: Literal["ndhwc", "contiguous"] = "ndhwc"
    """Layout of the convolution weights (at ZeRO 1-3 DeepSpeed flattens them and they stay contiguous)."""
    tf32: bool = False
    """GPU: products of fp32 operands may round these to TF32 (10 bits of mantissa), also what stays fp32 under bf16;
    off, so that fp32 means fp32.
    """
    cudnn_benchmark: bool = True
    """GPU: cuDNN tries its convolutions at each new shape and keeps the fastest; the first updates are slow."""
    accelerate: Literal["none", "graphs", "compile"] = "none"
    """GPU: the networks as CUDA graphs (replayed for each shape; gradients are averaged after the whole backward), or
    through `torch.compile` (in place of the passes written by hand).
    """
    overlap: bool = True
    """DeepSpeed ZeRO 0: gradients are averaged while the backward goes on; off = after it, DeepSpeed's own way (the
    same averages; ZeRO 1-3 overlap by themselves).
    """
    side_by_side: bool = False
    """GPU: every network after the first in a CUDA stream of its own; on one rank alone."""
    global_batch: int = Field(128, ge=4)
    """Clips per update over all ranks; half source, half target where the method adapts."""
    micro_batch: int | None = Field(None, ge=1)
    """Clips a rank takes at once; unset = global_batch / world size. What is left over becomes gradient
    accumulation.
    """
    layout: Literal["auto", "mixed", "domain_pure"] = "auto"
    """A micro-batch holds both domains (mixed) or one (domain_pure, the released layout); auto = mixed where two
    batch-norm groups fit.
    """
    base_batch: int | None = Field(None, ge=1)
    """The global batch that the stages' rates and lengths are written for; unset = `global_batch`, so that both stay
    as they are.
    """
    lr_rule: Literal["fixed", "linear", "sqrt"] = "fixed"
    """The rate times 1, k or the square root of k, where k = global_batch / base_batch: linear as Goyal et al. 2017
    (arXiv 1706.02677), sqrt as Krizhevsky 2014 (arXiv 1404.5997).
    """
    lengths: Literal["updates", "samples"] = "updates"
    """Stages and warm-up last as many updates (equal steps) or as many clips (equal epochs) as at `base_batch`; the
    gradient reversal ramps over either.
    """
    optimizer: Literal["sgd", "lars", "lamb", "adamw"] = "sgd"
    """sgd as released; LARS (You et al. 2017, arXiv 1708.03888) and LAMB (You et al. 2019, arXiv 1904.00962) scale
    each layer's update by its own weights and are for ZeRO 0 and DDP alone; adamw is torch's.
    """
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD and LARS."""
    nesterov: bool = False
    """SGD and LARS: Nesterov's form of momentum; as released without."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """LAMB and AdamW: decay of the averages of gradients and of their squares."""
    trust_coefficient: float = Field(0.001, gt=0)
    """LARS: a layer's rate is this times the ratio of the norms of its weights and of its gradient."""
    weight_decay: float = Field(1e-7, ge=0)
    """SGD: L2 on every parameter, inside the momentum, as released; LARS and LAMB: inside the trust ratio, and AdamW
    decoupled, of weights but not of biases.
    """
    noise_scale: bool = True
    """Log the gradient noise scale (McCandlish et al. 2018, arXiv 1812.06162) where the layout gives it: two ranks or
    two micro-batches an update, at ZeRO 0 or with DDP. Changes no result.
    """
    stage1: StageConfig = StageConfig(steps=3001, lr=0.01)  # type: ignore[call-arg]
    """Supervised and self-supervised warm-up (no adversarial share)."""
    stage2: StageConfig = StageConfig(steps=6001, lr=0.01, loss_scale=0.2)  # type: ignore[call-arg]
    """All losses; momentum and discriminators start anew."""
