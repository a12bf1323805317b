"""The papers whose systems are here, by the name that `memcli reproduce` takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A publication that specifies models."""

    name: str
    file: str
    """The text that docstrings and `ModelSpec.source` cite."""
    title: str
    authors: str
    venue: str


PAPERS = {
    paper.name: paper
    for paper in (
        Paper(
            name="early-fusion",
            file="000_bcb79d7cf5a52fe8.txt",
            title="DACS-UM-RTL: Early Fusion and Pre-text task learning for Video Memorability"
            " Prediction",
            authors="Ganesh, Huijben, Khaertdinov, Janssen, Mirela Popa, Tintarev",
            venue="MediaEval 2025",
        ),
        Paper(
            name="fclip",
            file="001_de183854d7703535.txt",
            title="A comprehensive study on contrastive pre-training and fine tuning of vision and"
            " text transformers for video memorability prediction",
            authors="Martín-Fernández, Esteban-Romero, Gil-Martín, Fernández-Martínez",
            venue="2026",
        ),
        Paper(
            name="clip-gru",
            file="002_1ca569390f82ecec.txt",
            title="Predicting video memorability using a model pretrained with natural language"
            " supervision",
            authors="Agarla, Celona, Schettini",
            venue="MediaEval 2022",
        ),
    )
}

CITED = (
    *PAPERS.values(),
    Paper(
        name="transfer",
        file="003_0369d3040d9b9e4f.txt",
        title="Transfer learning for video memorability prediction",
        authors="Cohendet, Demarty, Duong",
        venue="MediaEval 2018",
    ),
)
"""Every paper that a model's `source` names, also those without a table to reproduce."""


def cited(source: str) -> str:
    """A source, e.g. of a published figure, with the paper's authors instead of its file."""
    for paper in CITED:
        if paper.file in source:
            first = paper.authors.split(",")[0]
            return source.replace(paper.file, f"{first} et al., {paper.venue}")
    return source
