"""What happens in a toy clip: the random circumstances, and each verb as shapes that move over time.

World coordinates: the frame shows about -1..1 in both; x to the right, y towards the person, whose arm comes in from
y = 2. `put` is `take` and `close` is `open` played backwards: a single frame of one is a possible frame of the other.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.demo_kitchens import TOOLS, VERBS, Difficulty, KitchenStyle, Rgb

FloatArray = NDArray[np.float64]
Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """One filled polygon: outline (n, 2) in world units, colour RGB 0-255."""

    outline: FloatArray
    rgb: Rgb


@dataclass(frozen=True)
class Scene:
    """The circumstances of one clip; colours and shapes are drawn alike for every verb."""

    verb: str
    frames: int
    place: Point
    scale: float
    tempo: float
    amplitude: float
    phase: float
    side: float  # -1 or 1: where the arm leans, and which way pouring and cutting go
    lean: float
    tool: str
    station: str
    colours: tuple[Rgb, ...]
    skin: Rgb
    sleeve: Rgb
    item_sides: tuple[int, ...]
    clutter: tuple[Shape, ...]
    wobble: FloatArray  # (4,) phases
    dials: Difficulty


def draw_scene(rng: np.random.Generator, verb: str, style: KitchenStyle, dials: Difficulty, *, frames: int) -> Scene:
    """Draw the circumstances of one clip. Only tool and vessel may depend on the verb, by the kitchen's habit."""
    colours = tuple(random_colour(rng, style.saturation) for _ in range(8))
    tone = rng.uniform(0.45, 1.0)
    return Scene(
        verb=verb,
        frames=frames,
        place=(float(rng.normal(0, dials.place_spread)), float(rng.normal(0, dials.place_spread))),
        scale=1.0 + float(rng.uniform(-1, 1)) * dials.scale_spread,
        tempo=style.tempo * (1.0 + float(rng.uniform(-1, 1)) * dials.tempo_spread),
        amplitude=style.amplitude * (1.0 + float(rng.uniform(-1, 1)) * dials.amplitude_spread),
        phase=float(rng.uniform()),
        side=float(rng.choice([-1.0, 1.0])),
        lean=float(rng.uniform(0.1, 0.9)),
        tool=_habitual(rng, verb, style),
        station=_habitual(rng, verb, style),
        colours=colours,
        skin=(235 * tone, 190 * tone, 160 * tone),
        sleeve=random_colour(rng, style.saturation),
        item_sides=tuple(int(n) for n in rng.integers(3, 9, size=4)),
        clutter=tuple(_clutter(rng, style)),
        wobble=rng.uniform(0, 2 * math.pi, size=4),
        dials=dials,
    )


def random_colour(rng: np.random.Generator, saturation: float) -> Rgb:
    """A colour of any hue."""
    r, g, b = colorsys.hsv_to_rgb(rng.uniform(), saturation * rng.uniform(0.5, 1.0), rng.uniform(0.3, 1.0))
    return (255 * r, 255 * g, 255 * b)


def _habitual(rng: np.random.Generator, verb: str, style: KitchenStyle) -> str:
    habitual = TOOLS[(VERBS.index(verb) + style.habit_turn) % len(TOOLS)]
    anything = TOOLS[int(rng.integers(len(TOOLS)))]
    return habitual if rng.uniform() < style.habit else anything


def _clutter(rng: np.random.Generator, style: KitchenStyle) -> list[Shape]:
    shapes = []
    for _ in range(style.clutter):
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1.3)
        centre = (distance * math.cos(angle), distance * math.sin(angle))
        size = rng.uniform(0.1, 0.28)
        outline = polygon(centre, size, size * rng.uniform(0.5, 1.0), sides=int(rng.integers(3, 12)), angle=angle)
        shapes.append(Shape(outline, random_colour(rng, style.saturation)))
    return shapes


def polygon(centre: Point, rx: float, ry: float, *, sides: int = 20, angle: float = 0.0) -> FloatArray:
    """An ellipse of `sides` corners, (sides, 2)."""
    turn = np.linspace(0, 2 * math.pi, sides, endpoint=False)
    return _placed(np.stack([rx * np.cos(turn), ry * np.sin(turn)], axis=1), centre, angle)


def box(centre: Point, width: float, height: float, *, angle: float = 0.0) -> FloatArray:
    """A turned rectangle, (4, 2)."""
    w, h = width / 2, height / 2
    return _placed(np.array([(-w, -h), (w, -h), (w, h), (-w, h)]), centre, angle)


def bar(start: Point, end: Point, width: float) -> FloatArray:
    """A thick line, (4, 2)."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    return box(middle, math.hypot(dx, dy), width, angle=math.atan2(dy, dx))


def _placed(points: FloatArray, centre: Point, angle: float) -> FloatArray:
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) + np.asarray(centre)


def shapes_at(scene: Scene, frame: float) -> list[Shape]:
    """Everything that lies or moves on the worktop at a frame number (0 is the first), in painting order."""
    return [*scene.clutter, *_GESTURES[scene.verb](scene, frame)]


def _wobble(scene: Scene, frame: float) -> Point:
    a, b, c, d = scene.wobble
    size = scene.dials.wobble
    return (
        size * (math.sin(0.31 * frame + a) + math.sin(0.53 * frame + b)),
        size * (math.sin(0.29 * frame + c) + math.sin(0.57 * frame + d)),
    )


def _arm(scene: Scene, at: Point, *, shoulder: float | None = None) -> list[Shape]:
    start = (scene.side * scene.lean * 1.4 if shoulder is None else shoulder, 2.0)
    dx, dy = at[0] - start[0], at[1] - start[1]
    length = math.hypot(dx, dy)
    ux, uy = dx / length, dy / length
    wrist = (at[0] - 0.24 * ux, at[1] - 0.24 * uy)
    cuff = (at[0] - 0.55 * ux, at[1] - 0.55 * uy)
    dark: Rgb = (scene.skin[0] * 0.8, scene.skin[1] * 0.8, scene.skin[2] * 0.8)
    fingers = [
        Shape(bar(at, (at[0] + 0.25 * ux - spread * uy, at[1] + 0.25 * uy + spread * ux), 0.085), dark)
        for spread in (-0.15, -0.05, 0.05, 0.15)
    ]
    return [
        Shape(bar(start, cuff, 0.42), scene.sleeve),
        Shape(bar(cuff, wrist, 0.28), scene.skin),
        *fingers,
        Shape(polygon(at, 0.23, 0.19, angle=math.atan2(uy, ux)), scene.skin),
    ]


def _item(scene: Scene, number: int, at: Point) -> list[Shape]:
    size = 0.33 * scene.scale
    sides = scene.item_sides[number % 4]
    colour, lid = scene.colours[number % 4], scene.colours[4 + number % 4]
    return [
        Shape(polygon(at, size, size, sides=sides, angle=number + scene.phase), colour),
        Shape(polygon(at, size * 0.5, size * 0.5, sides=sides, angle=number + scene.phase), lid),
    ]


def _take(scene: Scene, frame: float) -> list[Shape]:
    """Reach in empty, grip, carry the thing out; then the next one."""
    dials = scene.dials
    clock = frame * scene.tempo / dials.reach_period + 0.25 * scene.phase
    number, part = int(clock), clock - int(clock)
    spots = [
        (scene.place[0] + dx, scene.place[1] - 0.15 + dy)
        for dx, dy in ((-0.3, 0.0), (0.3, -0.1), (0.0, -0.4), (0.05, 0.3))
    ]
    share = dials.reach_share
    out = 1.0 - _ease(part / share) if part < share else _ease((part - share) / (1 - share))
    spot = spots[number % 4]
    reach = dials.reach_length * scene.amplitude * out
    wx, wy = _wobble(scene, frame)
    hand = (spot[0] + wx + 0.3 * scene.side * scene.lean * reach, spot[1] + wy + reach + 0.18)
    carried = (hand[0], hand[1] - 0.18)
    waiting = [shape for later in range(number + 1, 4) for shape in _item(scene, later, spots[later])]
    moving = _item(scene, number, carried if part > share else spot) if number < 4 else []
    return [*waiting, *moving, *_arm(scene, hand)]


def _ease(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return 0.5 * x + 0.5 * (3 - 2 * x) * x * x  # half linear: no window of the clip stands still


def _open(scene: Scene, frame: float) -> list[Shape]:
    """Both hands swing the two flaps of a box up and outwards."""
    share = (frame + 2.0 * scene.phase) / scene.frames
    angle = math.radians(scene.dials.swing_deg) * min(1.0, 0.9 + 0.1 * scene.amplitude) * (0.03 + 0.97 * share)
    half, depth = 0.6 * scene.scale, 0.95 * scene.scale
    cx, cy = scene.place
    wx, wy = _wobble(scene, frame)
    flaps, arms = list[Shape](), list[Shape]()
    for side in (-1.0, 1.0):
        hinge, edge = cx + side * half, cx + side * half * (1 - math.cos(angle))
        grown = depth * (1 + 0.3 * math.sin(angle)) / 2
        flap = np.array([(hinge, cy - depth / 2), (hinge, cy + depth / 2), (edge, cy + grown), (edge, cy - grown)])
        stripe = 0.5 * flap + 0.5 * np.array([((hinge + edge) / 2, cy)])
        flaps += [Shape(flap, scene.colours[0]), Shape(stripe, scene.colours[1])]
        arms += _arm(scene, (edge + 0.1 * side + wx, cy + 0.35 * depth + wy), shoulder=1.2 * side)
    return [
        Shape(box(scene.place, 2.1 * half, depth * 1.06), scene.colours[4]),
        Shape(box(scene.place, 1.9 * half, depth * 0.9), scene.colours[5]),
        *_item(scene, 2, scene.place),
        *flaps,
        *arms,
    ]


def _station(scene: Scene, *, turned: float = 0.0) -> list[Shape]:
    """What the work is done on or in, whatever the verb, with things lying on it."""
    size = 0.68 * scene.scale
    sides = {"sponge": 20, "knife": 4, "spoon": 24, "brush": 6}[scene.station]
    lumps = []
    for number in range(4):
        angle = turned + scene.wobble[0] + number * math.pi / 2
        spot = (
            scene.place[0] + 0.34 * scene.scale * math.cos(angle),
            scene.place[1] + 0.34 * scene.scale * math.sin(angle),
        )
        outline = polygon(
            spot, 0.17 * scene.scale, 0.12 * scene.scale, sides=scene.item_sides[number], angle=angle + math.pi / 2
        )
        lumps.append(Shape(outline, scene.colours[6 + number % 2]))
    return [
        Shape(polygon(scene.place, size, size * 0.92, sides=sides, angle=math.pi / 4), scene.colours[4]),
        Shape(polygon(scene.place, size * 0.85, size * 0.78, sides=sides, angle=math.pi / 4), scene.colours[5]),
        *lumps,
    ]


def _tool(scene: Scene, at: Point, angle: float) -> list[Shape]:
    """The thing in the hand, its working end at `at`, its handle towards the person."""
    main, other = scene.colours[2], scene.colours[3]
    dx, dy = math.sin(angle), math.cos(angle)
    grip = (at[0] + 0.35 * dx, at[1] + 0.35 * dy)
    if scene.tool == "sponge":
        return [Shape(box(at, 0.56, 0.36, angle=-angle), main), Shape(box(at, 0.4, 0.16, angle=-angle), other)]
    if scene.tool == "knife":
        return [Shape(bar((at[0] - 0.5 * dx, at[1] - 0.5 * dy), grip, 0.16), main), Shape(bar(at, grip, 0.12), other)]
    if scene.tool == "spoon":
        return [
            Shape(bar(at, grip, 0.12), main),
            Shape(polygon((at[0] - 0.1 * dx, at[1] - 0.1 * dy), 0.2, 0.26, angle=-angle), other),
        ]
    return [
        Shape(bar(at, grip, 0.12), main),
        Shape(box((at[0] - 0.15 * dx, at[1] - 0.15 * dy), 0.22, 0.5, angle=-angle), other),
    ]


def _work(scene: Scene, frame: float, offset: Point, angle: float = 0.0) -> list[Shape]:
    wx, wy = _wobble(scene, frame)
    at = (scene.place[0] + offset[0] + wx, scene.place[1] + offset[1] + wy)
    return [*_station(scene), *_tool(scene, at, angle), *_arm(scene, (at[0] + 0.3 * math.sin(angle), at[1] + 0.36))]


def _turns(scene: Scene, frame: float, period: float) -> float:
    return 2 * math.pi * (frame * scene.tempo / period + scene.phase)


def _wash(scene: Scene, frame: float) -> list[Shape]:
    """Rub from side to side, fast."""
    sway = scene.amplitude * math.sin(_turns(scene, frame, scene.dials.wash_period))
    return _work(scene, frame, (scene.dials.wash_amplitude * sway, 0.03 * sway), -0.25 * sway)


def _cut(scene: Scene, frame: float) -> list[Shape]:
    """Chop to and fro along the arm, advancing slowly to one side."""
    dials = scene.dials
    chop = scene.amplitude * dials.cut_amplitude * math.sin(_turns(scene, frame, dials.cut_period))
    advance = scene.side * dials.cut_advance * (frame / scene.frames - 0.5)
    return _work(scene, frame, (advance, chop))


def _mix(scene: Scene, frame: float) -> list[Shape]:
    """Stir in circles; what is in the vessel goes round behind the spoon."""
    turn = scene.side * _turns(scene, frame, scene.dials.mix_period)
    reach = scene.amplitude * scene.dials.mix_amplitude
    wx, wy = _wobble(scene, frame)
    at = (scene.place[0] + reach * math.cos(turn) + wx, scene.place[1] + reach * math.sin(turn) + wy)
    tilt = 0.2 * math.cos(turn)
    swirl = _station(scene, turned=scene.dials.mix_swirl * turn)
    return [*swirl, *_tool(scene, at, tilt), *_arm(scene, (at[0] + 0.3 * math.sin(tilt), at[1] + 0.36))]


def _pour(scene: Scene, frame: float) -> list[Shape]:
    """A jug tilts and drops fall from its lip into the vessel, towards the near side of the frame."""
    x, y = scene.place
    side = scene.side
    tilt = -side * (0.75 + 0.45 * math.sin(_turns(scene, frame, scene.dials.pour_period)))
    wx, wy = _wobble(scene, frame)
    jug = (x + 0.35 * side + wx, y - 0.5 + wy)
    lip = (jug[0] - side * 0.4, jug[1] - 0.05)
    return [
        *_station(scene),
        *_drops(scene, frame, lip),
        Shape(box(jug, 0.5, 0.7, angle=tilt), scene.colours[0]),
        Shape(box(jug, 0.5, 0.22, angle=tilt), scene.colours[1]),
        *_arm(scene, (jug[0] + 0.3 * side, jug[1] + 0.12)),
    ]


def _drops(scene: Scene, frame: float, lip: Point) -> list[Shape]:
    fall, count = 1.1, 4
    shares = [
        (frame * scene.dials.drop_speed * scene.tempo / fall + number / count + scene.phase) % 1.0
        for number in range(count)
    ]
    return [Shape(polygon((lip[0], lip[1] + share * fall), 0.13, 0.17), scene.colours[3]) for share in shares]


def _backwards(gesture: Callable[[Scene, float], list[Shape]]) -> Callable[[Scene, float], list[Shape]]:
    return lambda scene, frame: gesture(scene, scene.frames - 1 - frame)


_GESTURES: dict[str, Callable[[Scene, float], list[Shape]]] = {
    "take": _take,
    "put": _backwards(_take),
    "open": _open,
    "close": _backwards(_open),
    "wash": _wash,
    "cut": _cut,
    "mix": _mix,
    "pour": _pour,
}
