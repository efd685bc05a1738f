"""Draw docs/images/network.svg: the two branches, the fusion after each stage, the decoder (figure 1 of the paper)."""

from pathlib import Path

HR, CONTEXT, FUSION, INK, PAPER = "#2468d8", "#b5548f", "#c77700", "#1b1e24", "#ffffff"
TOP, MIDDLE, BOTTOM = 70, 178, 286
FIRST, STEP, WIDTH, HEIGHT = 190, 168, 108, 50


def box(x: float, y: float, text: list[str], colour: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """Return a filled rectangle with lines of text in its middle."""
    lines = [
        f'<text x="{x + width / 2}" y="{y + height / 2 + 5 + 17 * (k - (len(text) - 1) / 2)}" '
        f'fill="{PAPER}" text-anchor="middle">{line}</text>'
        for k, line in enumerate(text)
    ]
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="9" fill="{colour}"/>' + "".join(lines)


def arrow(*points: tuple[float, float]) -> str:
    """Return a line through points with a tip at its end."""
    path = " ".join(f"{'ML'[k > 0]}{x} {y}" for k, (x, y) in enumerate(points))
    return f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="2" marker-end="url(#tip)"/>'


def label(x: float, y: float, text: str, anchor: str = "middle", size: int = 13) -> str:
    """Return a line of text."""
    return f'<text x="{x}" y="{y}" fill="{INK}" text-anchor="{anchor}" font-size="{size}">{text}</text>'


def drawing() -> str:
    """Return the whole SVG."""
    parts = [
        box(20, TOP, ["tile", "512 px"], "#5b6470", 96),
        box(20, BOTTOM, ["context", "1024 px / 2"], "#5b6470", 96),
    ]
    parts += [arrow((116, y + 25), (FIRST - 6, y + 25)) for y in (TOP, BOTTOM)]
    for stage in range(4):
        x = FIRST + stage * STEP
        middle = x + WIDTH / 2
        parts += [box(x, TOP, [f"hr stage {stage + 1}"], HR), box(x, BOTTOM, [f"context {stage + 1}"], CONTEXT)]
        parts += [box(x, MIDDLE, ["fusion"], FUSION)]
        parts += [
            arrow((middle, TOP + HEIGHT), (middle, MIDDLE - 7)),
            label(middle + 8, TOP + HEIGHT + 34, "Q", "start"),
        ]
        parts += [
            arrow((middle, BOTTOM), (middle, MIDDLE + HEIGHT + 7)),
            label(middle + 8, BOTTOM - 25, "K, V", "start"),
        ]
        if stage < 3:
            bend = x + WIDTH + 30
            parts += [arrow((x + WIDTH, MIDDLE + 25), (bend, MIDDLE + 25), (bend, TOP + 25), (x + STEP - 7, TOP + 25))]
            parts += [arrow((x + WIDTH, BOTTOM + 25), (x + STEP - 7, BOTTOM + 25))]
        # Every fused map goes to the decoder, over the top.
        parts += [arrow((x + WIDTH - 14, MIDDLE), (x + WIDTH - 14, MIDDLE - 22), (x + WIDTH + 15, MIDDLE - 22),
                        (x + WIDTH + 15, 40), (FIRST + 4 * STEP + 3, 40))]  # fmt: skip
    right = FIRST + 4 * STEP + 10
    parts += [box(right, 15, ["UPerNet", "decoder"], INK, 100), arrow((right + 50, 65), (right + 50, 103))]
    parts += [box(right, 110, ["classes", "of the tile"], "#5b6470", 100)]
    parts += [box(right, BOTTOM, ["context", "decoder"], "#a9afb8", 100)]
    last = FIRST + 3 * STEP + WIDTH
    parts += [arrow((last, BOTTOM + 25), (right - 7, BOTTOM + 25))]
    parts += [label(right + 50, BOTTOM + 72, "in training only")]
    parts += [
        label(
            20, 366, "After each stage every token of the tile (Q) reads all tokens of the context (K, V);", "start", 15
        ),
        label(20, 386, "the fused map feeds the next hr stage and the decoder.", "start", 15),
    ]
    tip = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{INK}"/></marker></defs>'
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 990 402" font-family="system-ui, sans-serif" '
        'font-size="15" role="img" aria-label="CASWiT: two Swin encoders, fused after every stage, and a decoder">'
        f'<rect width="990" height="402" fill="{PAPER}"/>{tip}{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("network.svg").write_text(drawing(), encoding="utf-8")
