"""The task ``speech_commands``: spoken words from raw audio samples."""

import logging
from dataclasses import dataclass
from typing import Optional

from fairseq.tasks import register_task

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.models.settings import setting
from megalodon_tasks.recipes.speech.signal_split import (
    RESAMPLING,
    Normalise,
    PerStep,
    SignalSplit,
    resampler,
    unchanged,
)
from megalodon_tasks.training.classification_task import ClassificationConfig, ClassificationTask

logger = logging.getLogger(__name__)

NORMALISATIONS = ("per_step", "per_step_twice", "global")


@dataclass
class SpeechCommandsConfig(ClassificationConfig):
    """Settings of the task ``speech_commands``."""

    sample_rate: Optional[int] = setting(None, "samples a second; default: as prepared")
    resampling: str = setting(
        "subsample", f"how a lower sample_rate is reached: one of {', '.join(RESAMPLING)}"
    )
    normalisation: str = setting(
        "per_step",
        "mean and deviation of the training clips: of each time step, as published "
        "(per_step), of samples that were divided by 2^15 twice (per_step_twice), or one for all "
        "samples (global)",
    )


@register_task("speech_commands", dataclass=SpeechCommandsConfig)
class SpeechCommandsTask(ClassificationTask):
    """Classify clips of a second: 16,000 samples, 10 or 35 words."""

    prepare_commands = {"sc_raw": "megalodon prepare speech/sc_raw SOURCE {data}"}

    def _open(self, cfg: SpeechCommandsConfig) -> PreparedDataset:
        prepared = super()._open(cfg)
        rate = prepared.spec.source["settings"]["sample_rate"]
        resample = resampler(
            rate, rate if cfg.sample_rate is None else cfg.sample_rate, cfg.resampling
        )
        normalise = self._normalisation(cfg, prepared)
        prepared.splits = {
            name: SignalSplit(split, normalise, resample) for name, split in prepared.splits.items()
        }
        return prepared

    def _normalisation(self, cfg: SpeechCommandsConfig, prepared: PreparedDataset) -> Normalise:
        if cfg.normalisation not in NORMALISATIONS:
            raise ValueError(
                f"task.normalisation={cfg.normalisation!r} is none of {', '.join(NORMALISATIONS)}"
            )
        if cfg.normalisation == "global":
            return prepared.spec.scale.apply
        if prepared.spec.source["settings"]["form"] == "mega":
            logger.info(
                "the tensors are standardised by time step already: they are taken as they are"
            )
            return unchanged
        logger.info("mean and deviation of each time step of the training clips are computed")
        divisions = 2 if cfg.normalisation == "per_step_twice" else 1
        return PerStep(prepared.split("train"), divisions)
