"""Parameters of the Pathfinder images, and the presets of Long Range Arena.

The names are those of the public generator (drewlinsley/pathfinder, ``snakes2``, of Linsley et al.
2018, arXiv 1805.08315) where it has one; the values of ``PRESETS`` are those that Long Range Arena
(Tay et al. 2021, arXiv 2011.04006) states for each resolution.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

#: Paddles of a target snake by difficulty, and the folder that the release keeps them in.
DIFFICULTIES = {"easy": 6, "medium": 9, "hard": 14}
_EASY_FOLDER = "curv_baseline"

# Bounds of the parameters; the least value of those that are not named is 1.
_POSITIVE = {"paddle_thickness", "marker_radius", "snake_contrast", "paddle_contrast"}
_LEAST = {
    "contour_length": 2,
    "num_distractors": 0,
    "single_paddles": 0,
    "continuity": 0,
    "max_distractor_retrial": 0,
    "max_paddle_retrial": 0,
    "max_restarts": 0,
}


def _explained(text: str, **default: Any) -> Any:
    """A dataclass field whose explanation is also the help of its command line option."""
    return field(metadata={"help": text}, **default)


@dataclass(frozen=True, kw_only=True)
class PathfinderSettings:
    """What defines the distribution of the images.  Lengths are in pixels, (y, x) order everywhere.

    Raises ``ValueError`` for values that no image can satisfy, naming them and what to change.
    """

    resolution: int = _explained("height and width of the image")
    contour_length: int = _explained("paddles of each of the two target snakes")
    distractor_length: int = _explained("paddles of a distractor snake")
    num_distractors: int = _explained("distractor snakes that are tried")
    single_paddles: int = _explained("lone paddles that are tried after the distractors", default=0)
    paddle_length: int = _explained("length of a paddle", default=5)
    paddle_thickness: float = _explained("width of a paddle", default=1.5)
    margins: tuple[int, ...] = _explained("free space around a paddle, one drawn per image")
    padding: int = _explained("border of the image that stays free")
    seed_distance: int = _explained("distance between the tails of the two target snakes")
    marker_radius: float = _explained("radius of the two discs")
    continuity: float = _explained("how strongly a snake prefers to go straight on", default=1.8)
    antialias_scale: int = _explained("oversampling of lines and discs", default=2)
    snake_contrast: tuple[float, ...] = _explained("brightness of a snake, drawn from these")
    paddle_contrast: tuple[float, ...] = _explained(
        "factor on it for the paddles of targets, drawn from these", default=(1.0,)
    )
    max_distractor_retrial: int = _explained("new attempts at a failed distractor", default=4)
    max_paddle_retrial: int = _explained("new attempts at a paddle that overlaps", default=2)
    max_restarts: int = _explained("new attempts at the targets of an image", default=10_000)

    def __post_init__(self) -> None:
        self._check_ranges()
        blown = self.paddle_thickness * self.antialias_scale
        if abs(blown - round(blown)) > 1e-9:
            raise ValueError(
                f"paddle_thickness={self.paddle_thickness} times antialias_scale="
                f"{self.antialias_scale} is {blown}, not a whole number of pixels; choose a "
                f"multiple of {1 / self.antialias_scale:g} or another antialias_scale"
            )
        longest = self.paddle_length + 2 * max(self.margins)
        if self.resolution <= 2 * max(longest, self.padding):
            raise ValueError(
                f"an image of resolution={self.resolution} has no room for two paddles in a row: "
                f"paddle_length={self.paddle_length} and two margins ({max(self.margins)} at most) "
                f"make {longest}, padding={self.padding}; choose a larger image or smaller parts"
            )
        if self.resolution <= 4 * self.seed_distance:
            raise ValueError(
                f"seed_distance={self.seed_distance} leaves no place for the first paddle in an "
                f"image of resolution={self.resolution}: the first tail keeps twice that distance "
                f"from every border; choose seed_distance below {self.resolution / 4:g}"
            )

    def _check_ranges(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            values = value if isinstance(value, tuple) else (value,)
            if not values:
                raise ValueError(f"{entry.name} is empty; give at least one value")
            if entry.name in _POSITIVE:
                if not 0 < min(values) <= max(values) < math.inf:
                    raise ValueError(f"{entry.name}={value} must be above 0 and finite")
            elif not min(values) >= _LEAST.get(entry.name, 1):
                raise ValueError(
                    f"{entry.name}={value} must be at least {_LEAST.get(entry.name, 1)}"
                )

    @property
    def folder(self) -> str:
        """Where the release keeps such images, e.g. ``pathfinder128/curv_contour_length_14``."""
        easy = self.contour_length == DIFFICULTIES["easy"]
        name = _EASY_FOLDER if easy else f"curv_contour_length_{self.contour_length}"
        return f"pathfinder{self.resolution}/{name}"


@dataclass(frozen=True)
class _Preset:
    """One column of Long Range Arena's table; ``distractor_paddles`` are shared out to snakes."""

    distractor_paddles: int
    values: dict[str, Any]


PRESETS = {
    32: _Preset(
        20,
        {
            "paddle_length": 2,
            "paddle_thickness": 0.5,
            "margins": (1,),
            "padding": 1,
            "seed_distance": 7,
            "marker_radius": 1.5,
            "continuity": 1.0,
            "snake_contrast": (2.0,),
            "paddle_contrast": (0.75,),
        },
    ),
    64: _Preset(
        22,
        {
            "paddle_thickness": 1.0,
            "margins": (1,),
            "padding": 1,
            "seed_distance": 12,
            "marker_radius": 2.5,
            "snake_contrast": (0.8,),
        },
    ),
    128: _Preset(
        35,
        {
            "paddle_thickness": 1.5,
            "margins": (2, 3),
            "padding": 1,
            "seed_distance": 20,
            "marker_radius": 3.0,
            "snake_contrast": (0.9,),
        },
    ),
    256: _Preset(
        30,
        {
            "paddle_thickness": 2.0,
            "margins": (3,),
            "padding": 22,
            "seed_distance": 27,
            "marker_radius": 5.0,
            "snake_contrast": (1.0,),
        },
    ),
}


def settings_for(resolution: int, difficulty: str = "hard", **overrides: Any) -> PathfinderSettings:
    """Make the settings of Long Range Arena at a resolution and difficulty, with some of them replaced.

    A resolution between those of ``PRESETS`` takes the values of the next smaller one, one below all of
    them those of the smallest, of which some must then be made smaller too.  As in the
    public generator a distractor is a third as long as a target, and their number is what a fixed
    total of paddles gives (both rounded down), also when ``contour_length`` is overridden.

    Raises ``ValueError`` for an unknown difficulty or parameter, and for what ``PathfinderSettings``
    refuses.
    """
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty={difficulty!r} is none of {', '.join(DIFFICULTIES)}")
    known = [entry.name for entry in fields(PathfinderSettings) if entry.name != "resolution"]
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(f"no parameter named {', '.join(unknown)}; there are {', '.join(known)}")
    preset = PRESETS[max((size for size in PRESETS if size <= resolution), default=min(PRESETS))]
    contour_length = overrides.get("contour_length", DIFFICULTIES[difficulty])
    distractor_length = overrides.get("distractor_length", max(contour_length // 3, 1))
    derived = {
        "resolution": resolution,
        "contour_length": contour_length,
        "distractor_length": distractor_length,
        "num_distractors": preset.distractor_paddles // max(distractor_length, 1),
    }
    return PathfinderSettings(**{**derived, **preset.values, **overrides})
