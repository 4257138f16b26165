"""Every dial of the toy kitchens: what differs between kitchens (the domains) and how hard the verbs are.

The verbs are told apart by motion; light, worktop, camera, tempo and clutter are what shifts between the kitchens. The
values were tuned on source-only training and on training with the target's own labels alone, never on an adaptation
method.
"""

from dataclasses import dataclass
from typing import Literal

# EPIC-KITCHENS-55 verb classes 0-7, in label order
VERBS = ("take", "put", "open", "close", "wash", "cut", "mix", "pour")
TOOLS = ("sponge", "knife", "spoon", "brush")

Rgb = tuple[float, float, float]  # 0-255 for colours, about 1 for gains


@dataclass(frozen=True)
class Difficulty:
    """The gestures, and how far clips of one kitchen and verb differ among themselves.

    World units (the frame shows about -1..1); times in frames at 30 fps.
    """

    place_spread: float = 0.12  # where the action sits
    scale_spread: float = 0.12  # relative size of things
    tempo_spread: float = 0.12  # relative speed of the gesture
    amplitude_spread: float = 0.15  # relative reach of the gesture
    tilt_spread_deg: float = 5.0  # camera roll around the kitchen's own
    pitch_spread: float = 0.03
    zoom_spread: float = 0.05
    light_spread: float = 0.08  # relative brightness
    reach_period: float = 40.0  # one take or put
    reach_length: float = 1.05
    reach_share: float = 0.2  # of a take that is the empty hand coming in; the rest carries the thing out
    swing_deg: float = 140.0  # the flaps over a whole clip
    wash_period: float = 9.0
    wash_amplitude: float = 0.28
    cut_period: float = 14.0
    cut_amplitude: float = 0.32
    cut_advance: float = 0.55  # over a whole clip
    mix_period: float = 18.0
    mix_amplitude: float = 0.32
    mix_swirl: float = 0.4  # speed of the contents relative to the spoon
    pour_period: float = 30.0  # tilting of the jug
    drop_speed: float = 0.05  # world units a frame
    wobble: float = 0.015  # nobody's hand is a machine


@dataclass(frozen=True)
class KitchenStyle:
    """One kitchen: a domain."""

    name: str
    # light
    light_rgb: Rgb
    gamma: float
    vignette: float  # 0 none .. 1 black corners
    shadow: float  # 0 none .. 1 black, over part of the worktop
    noise: float  # standard deviation in grey levels
    # texture
    pattern: Literal["plain", "planks", "tiles", "granite"]
    worktop_rgb: Rgb
    contrast: float  # 0 a flat worktop .. 1
    # camera
    tilt_deg: float
    pitch: float  # foreshortening, below 0.35
    zoom: float
    shake: float  # world units, standard deviation of the handheld sway
    shake_hz: float
    # people
    tempo: float
    amplitude: float
    habit: float  # chance that the tool, and the vessel, is the one this kitchen uses for the verb; otherwise any
    habit_turn: int  # shifts which one that is; where it differs between kitchens, appearance misleads across them
    # clutter
    clutter: int
    saturation: float  # of objects, 0..1


KITCHENS = {
    style.name: style
    for style in (
        KitchenStyle(
            name="K1", light_rgb=(1.08, 1.0, 0.86), gamma=0.95, vignette=0.1, shadow=0.15, noise=2.0,
            pattern="planks", worktop_rgb=(176, 142, 104), contrast=0.35,
            tilt_deg=0.0, pitch=0.05, zoom=0.95, shake=0.004, shake_hz=0.6,
            tempo=1.0, amplitude=1.0, habit=0.5, habit_turn=0, clutter=2, saturation=0.75,
        ),
        KitchenStyle(
            name="K2", light_rgb=(0.78, 0.9, 1.04), gamma=1.15, vignette=0.35, shadow=0.3, noise=3.0,
            pattern="tiles", worktop_rgb=(196, 202, 205), contrast=0.7,
            tilt_deg=38.0, pitch=0.15, zoom=1.1, shake=0.008, shake_hz=0.8,
            tempo=0.8, amplitude=0.8, habit=0.5, habit_turn=1, clutter=4, saturation=0.5,
        ),
        KitchenStyle(
            name="K3", light_rgb=(1.0, 1.05, 1.08), gamma=0.75, vignette=0.0, shadow=0.3, noise=3.0,
            pattern="granite", worktop_rgb=(84, 82, 86), contrast=0.7,
            tilt_deg=-24.0, pitch=0.12, zoom=0.85, shake=0.012, shake_hz=0.9,
            tempo=1.15, amplitude=1.1, habit=0.5, habit_turn=0, clutter=4, saturation=0.95,
        ),
    )
}  # fmt: skip
