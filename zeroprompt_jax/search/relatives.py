"""The models of a recycling study: a backbone's relatives, near and far, each a directory in Hugging Face layout."""

import abc
import contextlib
import dataclasses
import io
import os
import shutil
from pathlib import Path

from zeroprompt_jax import experiment as experiments, export, pretrained
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.interop import huggingface
from zeroprompt_jax.search import variants


@dataclasses.dataclass(frozen=True)
class Relative(abc.ABC):
    """Base of all relatives."""

    @abc.abstractmethod
    def make(self, backbone: Path, pretraining: Experiment, folder: Path) -> None:
        """Writes the model into `folder`. backbone: directory of the one that it is related to. pretraining: how models
        are trained; its runs are kept under MODEL_DIR and continue where they stopped."""

    def place(self, backbone: str, pretraining: Experiment, folder: Path) -> Path:
        """The model's directory, made when it is not there; whole or not at all."""
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.{os.getpid()}")
            try:
                self.make(pretrained.directory(backbone) or Path(backbone).expanduser(), pretraining, partial)
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return folder


@dataclasses.dataclass(frozen=True)
class Same(Relative):
    """The backbone itself."""

    def make(self, backbone, pretraining, folder):
        shutil.copytree(backbone, folder)


@dataclasses.dataclass(frozen=True)
class Rotated(Relative):
    """A copy in other coordinates (`variants.rotate`), then with noise of so many standard deviations on every array."""

    noise: float = 0.0
    seed: int = 0
    width: int | None = None

    def make(self, backbone, pretraining, folder):
        config = huggingface.read_config(backbone)
        params, config = variants.rotate(
            huggingface.read_t5(backbone, scan_layers=False), config, self.seed, self.width
        )
        if self.noise:
            params = variants.add_noise(params, self.noise, self.seed)
        huggingface.write_t5(folder, params, config, "float32")


@dataclasses.dataclass(frozen=True)
class Trained(Relative):
    """A model that is trained as `pretraining` says: the backbone further, or one from scratch.

    name: of its run, under the study's MODEL_DIR. scratch: whether it begins from nothing. width: of its embeddings, where
    it is not pretraining's.
    """

    name: str
    steps: int
    seed: int = 0
    scratch: bool = True
    width: int | None = None

    def __post_init__(self):
        if self.width and not self.scratch:
            raise UserError(
                f"relatives.Trained '{self.name}' continues from the backbone, whose width it cannot change."
            )

    def make(self, backbone, pretraining, folder):
        train = dataclasses.replace(
            pretraining.train,
            model_dir=str(Path(pretraining.train.model_dir) / self.name),
            steps=self.steps,
            seed=self.seed,
            initial_checkpoint_path=None if self.scratch else str(backbone),
        )
        made = dataclasses.replace(
            pretraining,
            train=train,
            data=dataclasses.replace(pretraining.data, seed=self.seed),
            model=dataclasses.replace(pretraining.model, emb_dim=self.width or pretraining.model.emb_dim),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            experiments.train(made)
        export.export_backbone(made, folder, "float32")
