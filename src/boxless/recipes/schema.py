"""Recipes as frozen dataclasses, one per command: every number has one default and one place."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from boxless.data.detection import AugmentConfig
from boxless.data.segmentation import CropConfig
from boxless.detectors.all import DETECTORS
from boxless.detectors.detector import DetectorConfig
from boxless.detectors.trunk import Neck, TrunkConfig, with_neck
from boxless.detectors.two_stage import FasterRCNNConfig
from boxless.methods.method import MethodConfig
from boxless.methods.self_training import SelfTrainingConfig

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Loggers = tuple[Literal["wandb", "mlflow"], ...]


def _check_least(settings: object, least: int, *names: str) -> None:
    """Raise ValueError if a number, or one of several, is less than `least`; None and words (auto) are none."""
    for name in names:
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and number < least:
                raise ValueError(f"{name}: expected {least} or more, got {number}")


@runtime_checkable
class TrainingRecipe(Protocol):
    """A recipe of a run that trains a trunk: pretraining or fine-tuning."""

    @property
    def trunk(self) -> TrunkConfig:
        """Settings of the trunk."""

    @property
    def necks(self) -> Sequence[Neck]:
        """The necks that the trunk may have, the usual one first."""


@dataclass(frozen=True)
class PretrainOptim:
    """Optimiser and learning rate of pretraining: warm-up, then a cosine, both per step."""

    name: Literal["lars", "sgd", "adamw"] = "lars"
    """LARS as in BYOL and SoCo; SGD with momentum; AdamW."""
    base_lr: float = 1.0
    """Peak learning rate for a batch of `reference_batch`; scaled in proportion to the batch."""
    reference_batch: int = 256
    """Batch that base_lr is for."""
    weight_decay: float = 1e-5
    """Weight decay; biases and norms have none."""
    momentum: float = 0.9
    """Momentum for LARS and SGD."""
    warmup_epochs: float = 10
    """Epochs of warm-up to the peak; at most a tenth of the run."""
    warmup_start: float = 0.0
    """Learning rate at the start of the warm-up, as a share of the peak (SoCo and PixPro: 0.01)."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine, for a batch of `reference_batch`; scaled as base_lr is."""
    bias_lr_scale: float = 1.0
    """Factor on the learning rate of biases and norms."""
    adapt_biases: bool = False
    """Apply LARS's scaling and weight decay to biases and norms too (SwAV)."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; none by default."""

    def __post_init__(self) -> None:
        _check_least(self, 0, "base_lr", "weight_decay", "momentum", "warmup_epochs", "warmup_start", "final_lr")
        _check_least(self, 0, "bias_lr_scale", "clip_norm")
        _check_least(self, 1, "reference_batch")


@dataclass(frozen=True)
class ProposalOptions:
    """Boxes without labels that `pretrain` makes by itself where a method needs them."""

    method: Literal["selective_search", "grid", "random"] = "selective_search"
    """Algorithm that finds the boxes."""
    preset: Literal["fast", "paper", "official-code"] = "fast"
    """Settings of selective search: fast (three colour spaces at reduced size), or those of SoCo's paper or code."""
    file: str | None = None
    """Table made by `boxless propose`, to be used instead of a new one."""


@dataclass(frozen=True)
class PretrainRecipe:
    """A pretraining run."""

    method: MethodConfig
    """Method, which defines the pretext task."""
    trunk: TrunkConfig = TrunkConfig()  # noqa: RUF009
    """The part of a detector that is trained."""
    optim: PretrainOptim = PretrainOptim()
    """Optimiser and schedule."""
    proposals: ProposalOptions = ProposalOptions()
    """Proposals: boxes without labels."""
    epochs: float = 100
    """Times that each image is seen."""
    batch_size: int = 256
    """Images per step over all processes; a smaller data set makes it smaller."""
    workers: int | None = None
    """Processes that decode and crop; by default the number of cores, at most 16."""
    decoder: Literal["processor", "gpu"] = "processor"
    """Device that decodes and crops JPEGs; gpu (torchvision's nvJPEG) helps if the GPU waits for few cores."""
    shard_buffer: int | None = None
    """Shards of packed data that images are drawn from at a time; by default 8 if they are fetched, else all."""
    precision: Precision = "auto"
    """Precision of the forward pass; auto: bf16 if the processor or GPU supports it, else float32."""
    compile: bool | None = None
    """Compile bodies, pyramids and colours with torch.compile; by default on a GPU in runs of 2000 steps or more,
    because it takes a minute or two at the start."""
    seed: int = 0
    """Seed for every random draw."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    health_every: int = 10
    """Steps between measures of the embeddings."""
    stop_on_collapse: bool = True
    """Stop the run if the embeddings collapse."""
    loggers: Loggers = ()
    """Loggers in addition to metrics.csv and TensorBoard: wandb, mlflow. They write into the run's folder and send
    nothing unless WANDB_MODE=online or MLFLOW_TRACKING_URI is set."""

    def __post_init__(self) -> None:
        if self.epochs <= 0:
            raise ValueError(f"epochs: expected more than 0, got {self.epochs:g}")
        _check_least(self, 0, "workers", "seed")
        _check_least(self, 1, "batch_size", "checkpoint_every", "health_every")

    @property
    def necks(self) -> Sequence[Neck]:
        """The neck of the trunk, whatever the weights have."""
        return (self.trunk.neck,)


@dataclass(frozen=True)
class FinetuneOptim:
    """Optimiser and learning rate of fine-tuning: linear warm-up, then drops, a polynomial or a cosine."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 0.02
    """Peak learning rate at `reference_batch`; scaled in proportion to the batch."""
    reference_batch: int = 16
    """Batch that lr is for."""
    momentum: float = 0.9
    """Momentum for SGD."""
    weight_decay: float = 1e-4
    """Weight decay; biases and norms have none. SoCo's COCO runs use 2.5e-5."""
    warmup_iterations: int = 1000
    """Steps of warm-up to the peak; at most a tenth of the run. Detectron2's VOC protocol has 100."""
    warmup_start: float = 0.001
    """Learning rate at the start of the warm-up, as a share of the peak (Sparse R-CNN: 0.01)."""
    schedule: Literal["drops", "polynomial", "cosine"] = "drops"
    """Schedule after the warm-up: drops; MMSegmentation's polynomial, in proportion to (1 - share done) ** 0.9; or a
    cosine after half of the run at the peak."""
    final_lr: float = 1e-4
    """Learning rate at the end of polynomial and cosine, for a batch of `reference_batch`; scaled as lr is."""
    drops: tuple[float, ...] = (2 / 3, 8 / 9)
    """Shares of the run after which the learning rate falls (1x: 60k and 80k of 90k)."""
    drop_factor: float = 0.1
    """Factor on the learning rate at each drop."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each stage of the body to the one before it; 1 treats all alike."""
    body_lr_scale: float = 1.0
    """Factor on the learning rate of the whole body (DETR: 0.1)."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; none by default, as in Detectron2."""

    def __post_init__(self) -> None:
        _check_least(self, 0, "lr", "momentum", "weight_decay", "warmup_iterations", "warmup_start", "final_lr")
        _check_least(self, 0, "drops", "drop_factor", "layer_decay", "body_lr_scale", "clip_norm")
        _check_least(self, 1, "reference_batch")


@dataclass(frozen=True)
class FinetuneRecipe:
    """A fine-tuning run on labelled images."""

    detector: DetectorConfig = field(default=FasterRCNNConfig(), metadata={"choices": DETECTORS})
    """Detector around the trunk: boxes, boxes and masks, or boxes and keypoints in two stages; boxes in one stage by
    RetinaNet or FCOS; boxes by Sparse R-CNN, DETR or RT-DETR (v2); or a class for every pixel by FCN. It decides the
    trunk's neck."""
    trunk: TrunkConfig = TrunkConfig()  # noqa: RUF009
    """Trunk of the detector; replaced by the weights' own if they come from a boxless run."""
    optim: FinetuneOptim = FinetuneOptim()
    """Optimiser and schedule."""
    epochs: float = 12
    """Times that each labelled image is seen; ignored if iterations is set."""
    iterations: int | None = None
    """Steps, instead of epochs; with 0 the detector is measured as it was loaded."""
    batch_size: int = 16
    """Images per step over all processes."""
    accumulate: int | Literal["auto"] = 1
    """Micro-batches that a batch is split into, to save memory: gradients are averaged, norms see one micro-batch, and
    losses that are means over objects are means within it. auto: split further whenever memory runs out."""
    min_size: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Shorter side, px: one is drawn per training image; the last is used for evaluation."""
    max_size: int = 1333
    """Longest side, px."""
    crop: CropConfig = field(
        default=CropConfig(), metadata={"used_if": lambda recipe: recipe.detector.targets == "classes"}
    )
    """Training crops of FCN, taken after min_size and max_size; an empty min_size keeps the size on disk."""
    random_crop: bool = False
    """Crop every second training image, as DETR and Sparse R-CNN do: to 384 to 600 px a side, after its shorter side
    is resized to 400, 500 or 600 px."""
    augment: AugmentConfig = AugmentConfig()  # noqa: RUF009
    """Augmentation of training images; not for FCN."""
    ema: float = 0.0
    """Window of the weights' moving average, as a share of the run (0.05: its last twentieth). The average is
    evaluated, kept and exported. 0: the last step's weights."""
    self_training: SelfTrainingConfig = field(
        default=SelfTrainingConfig(), metadata={"used_if": lambda recipe: recipe.detector.targets != "classes"}
    )
    """Self-training on unlabelled images, where there are any."""
    freeze: int = 0
    """Stages of the body that stay as loaded: 1 is the stem, 5 the whole body."""
    label_fraction: float = 1.0
    """Share of the labelled images to learn from."""
    label_count: int | None = None
    """Number of labelled images to learn from, instead of a share."""
    shots: int | None = None
    """Labelled boxes per class to learn from, instead of a share of the images. Other objects in their images are
    ignored; in Sparse R-CNN, DETR and RT-DETR they become background, as in TFA and CD-FSOD."""
    label_seed: int = 0
    """Seed for choosing the labelled images or boxes."""
    label_choice: Literal["random", "first"] = "random"
    """Choice of the labelled images: at random, or those with objects in the order of their ids (SoCo's code)."""
    label_list: str | None = None
    """File that names the images to learn from: the labels.json of a run, or an image id or file name per line."""
    learn_difficult: bool = False
    """Learn Pascal VOC's `difficult` objects too, as Detectron2 does and so MoCo, DetCo and SoCo. AP ignores
    them in any case."""
    repeat_threshold: float = 0.0
    """Share of images below which a class is rare, and its images seen more often (LVIS: 0.001); 0 for none."""
    metric: Literal["coco", "voc07", "lvis"] = "coco"
    """Metric: COCO's AP; voc07 adds VOC 2007's 11-point AP; lvis replaces it by LVIS's."""
    min_loaded: float = 0.99
    """Share of the backbone (and of each part that the weights hold) that must be loaded."""
    precise_norms: int = 0
    """Training batches from which the running statistics of batch norms are re-estimated before the last evaluation
    (Detectron2's TEST.PRECISE_BN, 200 in the papers' protocols); with 0 they stay moving averages."""
    evaluate_every: int | None = None
    """Iterations between early looks at AP; by default five looks per run."""
    workers: int | None = None
    """Processes that decode and resize; by default the number of cores, at most 8."""
    precision: Precision = "auto"
    """Precision of the forward pass; auto: bf16 if the processor or GPU supports it, else float32."""
    seed: int = 0
    """Seed for every random draw except the choice of labels."""
    checkpoint_every: int = 500
    """Iterations between checkpoints."""
    loggers: Loggers = ()
    """Loggers in addition to metrics.csv and TensorBoard, as in pretraining."""

    def __post_init__(self) -> None:
        _check_least(self, 0, "epochs", "iterations", "freeze", "label_seed", "precise_norms", "evaluate_every")
        _check_least(self, 0, "workers", "seed", "ema")
        _check_least(self, 1, "batch_size", "accumulate", "min_size", "max_size", "checkpoint_every")
        object.__setattr__(self, "trunk", with_neck(self.trunk, self.detector.necks))

    @property
    def necks(self) -> Sequence[Neck]:
        """The necks that the detector takes, the usual one first."""
        return self.detector.necks


@dataclass(frozen=True)
class CompareRecipe:
    """The settings of all cells of a comparison; methods, label fractions and seeds are arguments of the command."""

    pretrain: PretrainRecipe
    """Pretraining of every method. The `method` group holds for that method alone; other methods take theirs and the
    optimiser from their own recipes (such as byol-small), except for keys of the optimiser that are changed here."""
    finetune: FinetuneRecipe = FinetuneRecipe()
    """Fine-tuning of every cell; its trunk is pretrain.trunk."""
    view_size: int = 96
    """Size of the full-size views of every method, px; smaller views and blur are scaled with it."""
    starts: dict[str, Any] = field(default_factory=dict)
    """Starts of your own, by name: a method, keys of its pretraining that differ, and `weights` to start from, such
    as {method: soco, method.boxes: 1} or {method: byol, weights: runs/byol}."""

    def __post_init__(self) -> None:
        _check_least(self, 1, "view_size")
        names = list(self.starts) if isinstance(self.starts, dict) else [self.starts]
        wrong = [name for name in names if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name)]
        if wrong or "none" in names:
            raise ValueError(
                f"starts: expected names of letters, digits, _ . + - (not none), got {(wrong or ['none'])[0]!r}"
            )
