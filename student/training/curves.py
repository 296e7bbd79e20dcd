"""The curves of a training run, drawn from its log."""

from pathlib import Path

from sentence_distill.student.training.log import read_metrics

CURVES = ("curves.svg", "curves.png")
_PANELS = (
    ("train", "loss", "loss of a batch"),
    ("train", "learning_rate", "learning rate"),
    ("validation", "cosine", "held-out cosine"),
    ("validation", "rank_agreement", "held-out rank agreement"),
)


def draw_curves(out: Path) -> Path:
    """Draw loss, learning rate and held-out scores over the steps; return the SVG, a PNG is beside it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    metrics = read_metrics(out)
    # The same log gives the same file.
    with mpl.rc_context({"svg.hashsalt": "sentence-distill", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        for axes, (kind, name, title) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
            points = [(line["step"], line[name]) for line in metrics if line["kind"] == kind]
            # A validation is a point of its own; training has thousands, and a line.
            style = {"marker": "o", "markersize": 4} if kind == "validation" else {}
            axes.plot(*zip(*points, strict=True) if points else ((), ()), linewidth=1.2, color="#2563eb", **style)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel("step", fontsize=9)
            axes.grid(alpha=0.25)
        for name in CURVES:
            figure.savefig(out / name, dpi=120, metadata={"Date": None} if name.endswith(".svg") else {})
    return out / CURVES[0]
