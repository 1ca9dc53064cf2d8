"""Package megalodon_tasks; links in it bring models, criterions, cuda_ops and recipes into the wheel."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
HAS_WHEEL = "python_version < '3.13' and sys_platform == 'linux' and platform_machine == 'x86_64'"
HAS_NO_WHEEL = "python_version >= '3.13' or sys_platform != 'linux' or platform_machine != 'x86_64'"


def version() -> str:
    """The version that megalodon_tasks/__init__.py states."""
    text = (ROOT / "megalodon_tasks" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


setup(
    name="megalodon-tasks",
    version=version(),
    description="Megalodon (arXiv 2404.08801) for fairseq: ops, models and benchmark recipes",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="Megalodon Tasks authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["megalodon_tasks", "megalodon_tasks.*"]),
    package_data={"": ["*.yaml", "settings/*.yaml", "*.sh", "*.csv", "*.md", "*.j2", "*.c", "*.h"]},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "torchaudio>=2.11",
        "timm>=1.0.20,<2",
        "omegaconf>=2.3,<2.4",
        "hydra-core>=1.3.2,<1.4",
        "hydra-joblib-launcher>=1.2,<1.3",
        "numpy>=2,<3",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "scikit-learn>=1.4",
        "scipy>=1.13",
        "pillow>=10.3",
        "soundfile>=0.12",
        "safetensors>=0.4.3",
        "sentencepiece>=0.2",
        "jinja2>=3.1",
        "filelock>=4.2",
    ],
    entry_points={"console_scripts": ["megalodon = megalodon_tasks.cli.main:main"]},
    extras_require={
        # Any distribution that provides fairseq 0.12.3 will do; of these two, one has wheels for Linux.
        "fairseq": [
            f"ve-fairseq>=0.12.3,<0.13; {HAS_WHEEL}",
            f"fairseq-fixed>=0.12.3.1,<0.13; {HAS_NO_WHEEL}",
        ],
        "dev": [
            *("pytest>=8", "pytest-xdist>=3.6", "ruff>=0.14", "basedpyright>=1.31", "build>=1.2"),
            *("onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.23"),
        ],
        "eval": ["lm-eval>=0.4.13,<0.5", "transformers>=5.24,<6"],
        "hf": ["transformers>=5.24,<6"],
        "onnx": ["onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.23"],
        "slurm": ["hydra-submitit-launcher>=1.2"],
        "tensorboard": ["tensorboard>=2.16"],
        "wandb": ["wandb>=0.17"],
    },
)
