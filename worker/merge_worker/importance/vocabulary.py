"""Squared gradients of the output head and the embedding, in slices of the vocabulary.

Labels are drawn from the model's probabilities by their distribution function, with one uniform
number for each token that depends on the seed, the sample and the place only. The gradient of a
tied matrix is that of the head plus that of the embedding, squared after they are added.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor, nn

from ..errors import ResultError
from ..inference.head import Head, Slice
from ..inference.layerwise import logits_of
from .layout import DiskLayout
from .samples import Run
from .scratch import Result, Scratch, StateFile


class Vocabulary:
    """Head and embedding of a model whose samples run. Stages are called in this order:
    `finals`, `choose`, `head`, `gradient`; then `add` and `embed`.
    """

    def __init__(
        self,
        run: Run,
        layout: DiskLayout,
        scratch: Scratch,
        result: Result,
        tick: Callable[[str], None],
    ) -> None:
        self.run, self.layout, self.result, self.tick = run, layout, result, tick
        self.model, self.device = run.model, run.model.device
        self.head_of = Head(self.model)
        targets = self.model.targets
        self.embedding = next(
            name for name, target in targets.items() if target.module is self.model.embedding
        )
        by_name = {t.name: t for t in targets.values() if t.module is self.model.head}
        self._weight, self._bias = by_name["weight"].source, by_name.get("bias")
        own = targets[self.embedding].source
        declared = bool(getattr(self.model.text_config, "tie_word_embeddings", False))
        alike = self.model.weights.shape(own) == self.model.weights.shape(self._weight)
        self.tied = own == self._weight or (declared and alike)
        counts = [len(sample.places) for sample in run.samples]
        width, folder = self.head_of.width, scratch.folder
        rows = [len(torch.unique(sample.ids)) for sample in run.samples]
        dtype = self.model.dtype
        self._finals = StateFile(folder / "finals", [(n, width) for n in counts], dtype)
        self._totals = StateFile(folder / "totals", [(n,) for n in counts], torch.float64)
        self._labels = StateFile(folder / "labels", [(n,) for n in counts], torch.int64)
        self._back = StateFile(folder / "back", [(n, width) for n in counts], torch.float32)
        self._rows = StateFile(folder / "rows", [(n, width) for n in rows], torch.float32)

    def close(self) -> None:
        for states in (self._finals, self._totals, self._labels, self._back, self._rows):
            states.close()

    def finals(self, leaving: Callable[[int], Tensor]) -> None:
        """Store the input of the head at the places that count."""
        for sample in self.run:
            self.tick("norm forward")
            final = self.run.final(sample, leaving(sample))
            self._finals.write(sample, final[0, self.run.samples[sample].places])

    def choose(self, labels: str, seed: int) -> None:
        """Compute the log of the sum of exponentials at all places, and draw or take labels."""
        totals = [
            torch.full((len(s.places),), -torch.inf, dtype=torch.float64) for s in self.run.samples
        ]
        for part in self.head_of.slices():
            for sample in self.run:
                self.tick("head forward")
                more = self._logits(sample, part).double().logsumexp(1).cpu()
                totals[sample] = torch.logaddexp(totals[sample], more)
        for sample, total in enumerate(totals):
            if not bool(total.isfinite().all()):
                raise ResultError(
                    f"{self.model.label}: NaN or Inf in the logits of sample {sample + 1}; the "
                    f"weights hold such values, or --dtype is too narrow"
                )
            self._totals.write(sample, total)
            places = self.run.samples[sample].places
            self._labels.write(sample, self.run.samples[sample].labels[places + 1])
            self._back.write(sample, torch.zeros(self._back.shapes[sample]))
        if labels == "model":
            self._draw(totals, seed)

    def _draw(self, totals: list[Tensor], seed: int) -> None:
        below = [torch.zeros(len(total), dtype=torch.float64) for total in totals]
        drawn = [torch.full((len(total),), -1) for total in totals]
        uniform = [
            _uniform(seed, number, len(sample.ids))[sample.places]
            for number, sample in enumerate(self.run.samples)
        ]
        for part in self.head_of.slices():
            for sample in self.run:
                self.tick("labels")
                logits = self._logits(sample, part).double().cpu()
                shares = torch.exp(logits - totals[sample][:, None]).cumsum(1)
                shares += below[sample][:, None]
                here = (drawn[sample] < 0) & (shares[:, -1] >= uniform[sample])
                places = (shares < uniform[sample][:, None]).sum(1)
                drawn[sample][here] = part.first + places[here]
                below[sample] = shares[:, -1]
        for sample, labels in enumerate(drawn):
            # Where rounding leaves the sum of all below the number drawn, the last token.
            self._labels.write(sample, labels.where(labels >= 0, self.head_of.rows - 1))

    def head(self) -> None:
        """Write the mean squares of the head, and add up the gradient of its input."""
        for part in self.head_of.slices():
            sums = torch.zeros_like(part.weight, dtype=torch.float32)
            bias = sums.new_zeros(len(sums))
            for sample in self.run:
                self.tick("head backward")
                hidden = self._finals.read(sample).to(self.device)
                outer = self._outer(sample, part, hidden)
                sums += (outer.T @ hidden.float()).square_()
                bias += outer.sum(0).square()
                back = self._back.read(sample).to(self.device)
                self._back.write(sample, back + outer @ part.weight.float())
            self._write(self._weight, sums, part.first * self.head_of.width)
            if self._bias is not None:
                self._write(self._bias.source, bias, part.first)

    def gradient(self, sample: int, final: Tensor) -> Tensor:
        """Return the gradient of the head's input (1, tokens, width) for a sample."""
        full = torch.zeros_like(final)
        full[0, self.run.samples[sample].places] = self._back.read(sample).to(final)
        return full

    def add(self, sample: int, rows: Tensor, gradient: Tensor | None) -> None:
        """Store the gradient of the rows of the embedding that a sample reads."""
        assert len(rows) == self._rows.shapes[sample][0]
        if gradient is not None:
            self._rows.write(sample, gradient)

    def embed(self) -> None:
        """Write the mean squares of the embedding; of a tied one, with those of the head."""
        name = self.model.targets[self.embedding].source
        count, width = self.model.weights.shape(name)
        numbers = [torch.unique(sample.ids) for sample in self.run.samples]
        step = self.head_of.rows_at_once
        for first in range(0, count, step):
            stop = min(count, first + step)
            sums = torch.zeros(stop - first, width)
            for sample, rows in enumerate(numbers):
                self.tick("embedding")
                here = (rows >= first) & (rows < stop)
                own = self._rows.read(sample)[here]
                more = own.square()
                if self.tied and bool(here.any()):
                    more += 2 * own * self._of_head(sample, rows[here])
                sums[rows[here] - first] += more
            self._write(name, sums, first * width, tied=self.tied)

    def _of_head(self, sample: int, rows: Tensor) -> Tensor:
        """Return a sample's gradient of some rows of the head, on the host."""
        weights, target = self.model.weights, self.model.targets[self.embedding]
        weight = weights.gather(self._weight, rows.tolist(), target.dtype).to(self.device)
        bias = None
        if self._bias is not None:
            whole = weights.tensor(self._bias.source, self._bias.dtype)
            bias = whole[rows].to(self.device)
        hidden = self._finals.read(sample).to(self.device)
        outer = self._outer(sample, Slice(0, weight, bias), hidden, rows)
        return (outer.T @ hidden.float()).cpu()

    def _logits(self, sample: int, part: Slice) -> Tensor:
        return self.head_of.logits(self._finals.read(sample).to(self.device), part)

    def _outer(
        self, sample: int, part: Slice, hidden: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Return the gradient of the outputs of the head's rows (places, rows), float32.

        The rows are those of a slice, or `rows`.
        """
        logits = self.head_of.logits(hidden, part)
        total = self._totals.read(sample)[:, None].to(logits.device)
        outer = torch.exp(logits.double() - total).float()
        labels = self._labels.read(sample)
        numbers = part.first + torch.arange(outer.shape[1]) if rows is None else rows
        place = torch.searchsorted(numbers, labels).clamp(max=len(numbers) - 1)
        here = (numbers[place] == labels).nonzero().view(-1)
        outer[here, place[here]] -= 1.0
        if self.head_of.is_plain:
            return outer
        with torch.enable_grad():
            raw = nn.functional.linear(hidden, part.weight, part.bias).detach().requires_grad_()
            capped = logits_of(self.model, raw.unsqueeze(0)).squeeze(0).float()
            (found,) = torch.autograd.grad(capped, raw, outer.to(capped))
        return found.float()

    def _write(self, name: str, sums: Tensor, start: int, tied: bool = False) -> None:
        mean = (sums / len(self.run.samples)).reshape(-1).cpu()
        source = self._weight if tied else name
        if tied:
            mean += self._read(source, start, start + mean.numel())
        for place in dict.fromkeys([name, source]):
            self.layout.write(place, mean, self.result.put, self.result.get, start)

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        """Return what is written of a matrix of the vocabulary, which is stored as it is."""
        (disk,) = self.layout.names(name)
        return self.result.get(disk, start, stop)


def _uniform(seed: int, sample: int, length: int) -> Tensor:
    """Return one number from 0 to 1 for each place of a sample, float64."""
    digest = blake2b(f"{seed}\0{sample}".encode(), digest_size=8).digest()
    noise = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(length, generator=noise, dtype=torch.float64)
