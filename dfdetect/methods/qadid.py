"""qadid: QAD and DID at once, for unknown compression and unknown forgeries.

DID's objective is what QAD classifies by: one forward of all qualities gives the last maps, which
DID decomposes, and the tapped ones, which QAD ties; weights are perturbed against the cross-entropy
of DID's classifier. Each keeps its own options, as `method.qad.alpha` and `method.did.alpha`.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import field_validator
from torch import Tensor

from dfdetect.data import Batch
from dfdetect.detector import Detector
from dfdetect.methods import base
from dfdetect.methods.did import Decomposing, Did, Objective
from dfdetect.methods.did import Options as DidOptions
from dfdetect.methods.qad import Options as QadOptions
from dfdetect.methods.qad import Qad


class Options(base.Options):
    qad: QadOptions = QadOptions()
    did: DidOptions = DidOptions()

    @field_validator("qad")
    @classmethod
    def _not_soft(cls, qad: QadOptions) -> QadOptions:
        if qad.collab.startswith("soft"):
            raise ValueError("soft labels take the place of the cross-entropy that DID has")
        return qad


class QadDid(Decomposing, Qad):
    Options = Options

    def __init__(self, detector: Detector, options: Options, n_domains: int) -> None:
        super().__init__(detector, options.qad, n_domains)
        self.objective = Objective(detector, options.did)

    @classmethod
    def detector_settings(cls, options: Options, n_domains: int) -> dict[str, Any]:
        return Did.detector_settings(options.did, n_domains)

    @classmethod
    def domains(cls, options: Options, in_data: Sequence[str]) -> list[str]:
        return Did.domains(options.did, in_data)

    @classmethod
    def why_not_accumulate(cls, options: Options) -> str:
        return Qad.why_not_accumulate(options.qad) or Did.why_not_accumulate(options.did)

    @classmethod
    def why_too_short(cls, options: Options, n_epochs: int) -> str:
        return Did.why_too_short(options.did, n_epochs)

    @classmethod
    def skips_parameters(cls, options: Options) -> bool:
        return True  # see Did

    def classified(self, final: Tensor, batch: Batch) -> tuple[base.StepLoss, Tensor]:
        step, classification = self.decomposed(final, batch)
        names = {"reg_ratio": "dec_ratio"}  # the first is what QAD's own ratio is called
        notes = {names.get(name, name): note for name, note in step.notes.items()}
        return step._replace(notes=notes), classification
