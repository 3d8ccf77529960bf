"""The main job of the demo: adapt a small diffusion model, chapter by chapter, and show what happened."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.demo.contact_sheet import Panel, draw_contact_sheet, draw_grid
from refiners.demo.diffusion import Images, predict_velocity, sample
from refiners.demo.digits import SIZE, Style, load_digits
from refiners.demo.options import Options
from refiners.demo.progress import track
from refiners.demo.style import OUTLINED, attach_style, eject_styles, load_style, save_style, set_scales, train_style
from refiners.demo.timing import portable, time_alternately
from refiners.demo.unet import DigitsUNet, load_base
from refiners.fluxion.utils import manual_seed
from refiners.ops.library import native

COLUMNS = 5
LABELS = torch.arange(10).repeat_interleave(COLUMNS)  # a row for each digit
STYLES: tuple[Style, Style] = ("slanted", "outlined")
SCALES = (0.0, 0.5, 1.0)
# A column each: what it is called, and the scales of the two styles.
MIXES = (
    ("neither", 0.0, 0.0),
    ("slanted", 1.0, 0.0),
    ("outlined", 0.0, 1.0),
    ("0.75, 0.25", 0.75, 0.25),
    ("0.1, 0.9", 0.1, 0.9),
)


class Story:
    """The chapters, and what they share: the model, the noise that all samples begin with, the pictures so far.

    Args:
        options: What the user chose.

    Raises:
        DemoError: If an optional dependency is missing, or the folder of the pictures cannot be made.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.panels: list[Panel] = []
        self.checks: list[bool] = []
        manual_seed(options.seed)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.noise = torch.randn(len(LABELS), 1, SIZE, SIZE, generator=self.generator)
        self.unet = load_base()
        self.unet.requires_grad_(False)

    def tell(self) -> Path:
        """Run all chapters and return the path of the contact sheet."""
        self.show_real("plain", "Real digits", "scikit-learn, 1,797 images")
        base = self.sample("sampling the base model")
        self.show("base", base, "The base model", f"samples for the labels 0 to 9, seed {self.options.seed}")
        for style in STYLES:
            self.show_real(style, f"Another domain: {style}", "the same digits, redrawn")
        self.adapt("slanted")
        self.show_adapted_layer()
        self.show_scales("slanted")
        self.measure()
        self.reload("slanted")
        self.mix()
        eject_styles(self.unet)
        again = self.sample("sampling, all LoRAs ejected")
        self.check("ejected: the samples of the base model are back, bit for bit", again, base)
        return self.save_contact_sheet()

    def adapt(self, style: Style) -> None:
        """Attach a LoRA, train it alone on a style, and save it."""
        loras = attach_style(self.unet, style)
        steps = self.options.steps
        losses = list(track(train_style(self.unet, loras, style, steps, self.generator), steps, f"training: {style}"))
        num_weights = sum(weight.numel() for lora in loras.values() for weight in lora.parameters())
        share = num_weights / sum(weight.numel() for weight in load_base().parameters())
        tenth = -(-steps // 10)
        start, end = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
        print(f"{len(loras)} LoRAs, {num_weights:,} weights ({share:.0%} of the base): loss {start:.3f} to {end:.3f}")
        save_style(loras, self.file_of(style))

    def show_adapted_layer(self) -> None:
        """Print the tree around the first adapted layer of the cross-attention."""
        attention = next(layer for layer in self.unet.layers(fl.Attention) if type(layer) is fl.Attention)
        print(f"\nThe tree around an adapted layer, {attention.get_path()}:\n{attention!r}\n")

    def show_scales(self, style: Style) -> None:
        """Sample the same noise with a LoRA at several scales."""
        for scale in SCALES:
            set_scales(self.unet, {style: scale})
            images = self.sample(f"sampling: {style} at scale {scale:g}")
            self.show(f"{style}_scale_{scale:g}", images, f"LoRA {style}, scale {scale:g}", "the same noise and labels")

    def measure(self) -> None:
        """Print how long one denoising step takes without LoRA, and with it through the kernels and through torch."""
        base = load_base()
        cases = {"without LoRA": lambda: self.predict(base), "with LoRA, portable": portable(lambda: self.predict())}
        if native.loaded:
            cases["with LoRA, native"] = lambda: self.predict()
        print(f"\nTime of one step, {2 * len(LABELS)} images, {torch.get_num_threads()} threads:")
        for timing in time_alternately(cases):
            print(f"    {timing}")
        print("" if native.loaded else f"    (no native kernels: {native.problem})\n")

    def reload(self, style: Style) -> None:
        """Eject the LoRA, read it back from its file, and check both; it is ejected again in the end."""
        adapted = self.predict()
        eject_styles(self.unet)
        self.check(f"{style} ejected: the base output is back, bit for bit", self.predict(), self.predict(load_base()))
        load_style(self.unet, style, self.file_of(style))
        self.check(f"{self.file_of(style)}: reloaded, it gives the same output, bit for bit", self.predict(), adapted)
        eject_styles(self.unet)

    def mix(self) -> None:
        """Attach the shipped LoRA and the one trained here, and let each sample of a batch mix them its own way."""
        load_style(self.unet, "outlined", OUTLINED)
        load_style(self.unet, "slanted", self.file_of("slanted"))
        _, *scales = zip(*MIXES)
        for style, values in zip(STYLES, scales):
            # One scale for each sample; the sampler doubles the batch for its guidance.
            set_scales(self.unet, {style: torch.tensor(values).repeat(2 * len(LABELS) // COLUMNS)})
        first = self.noise[::COLUMNS].repeat_interleave(COLUMNS, dim=0)
        images = self.sample("sampling: two LoRAs in one batch", first)
        names = [mix[0] for mix in MIXES]
        self.show("mixed", images, "Two LoRAs in one batch", "scales of slanted, outlined by sample", names)

    def show_real(self, style: Style, title: str, subtitle: str) -> None:
        """Show the first real images of each digit in a style."""
        images, labels = load_digits(style)
        first = torch.cat([(labels == digit).nonzero()[:COLUMNS, 0] for digit in range(10)])
        self.show(f"real_{style}", images[first], title, subtitle)

    def sample(self, description: str, noise: Images | None = None) -> Images:
        """Sample a grid with the model as it is now."""
        steps = self.options.sampling_steps
        guesses = sample(self.unet, LABELS, self.noise if noise is None else noise, steps)
        return list(track(guesses, steps, description))[-1]

    def predict(self, unet: DigitsUNet | None = None) -> Tensor:
        """Call a model once, as one step of the sampler does."""
        noise, labels = self.noise.repeat(2, 1, 1, 1), LABELS.repeat(2)
        with torch.no_grad():
            return predict_velocity(self.unet if unet is None else unet, noise, torch.full((len(noise),), 0.7), labels)

    def check(self, sentence: str, found: Tensor, expected: Tensor) -> None:
        """Print whether two results are the same in every bit, and remember it."""
        self.checks.append(torch.equal(found, expected))
        print(f"{'[ok]' if self.checks[-1] else '[FAILED]'} {sentence}")

    def show(self, name: str, images: Images, title: str, subtitle: str, columns: Sequence[str] = ()) -> None:
        """Save a grid as a picture, and keep it for the contact sheet."""
        grid = draw_grid(images, COLUMNS)
        grid.save(self.options.out / f"{name}.png")
        self.panels.append(Panel(title, subtitle, grid, columns))

    def file_of(self, style: Style) -> Path:
        """Return where a LoRA is saved."""
        return self.options.out / f"lora_{style}.safetensors"

    def save_contact_sheet(self) -> Path:
        """Save one picture of all grids."""
        path = self.options.out / "contact_sheet.png"
        sheet = draw_contact_sheet("A diffusion model of handwritten digits, and two LoRAs", self.panels, num_columns=4)
        sheet.save(path)
        return path
