"""The one command of vidssl: python launch.py --help."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vidssl.run import command


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    return command.application(cfg)


if __name__ == "__main__":
    sys.exit(command.run(main, Path(__file__).resolve().parent))
