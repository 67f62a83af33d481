"""Finding features: which layout a path is in, the files below a folder, and reading one bag of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import boundary
from mil_zoo.data.layouts.base import LAYOUTS, Claim, FeatureSet, Layout, Sure, TableLayout, only
from mil_zoo.errors import InputError, as_path, did_you_mean
from mil_zoo.files import refuse_pipe

_ASKED = 5  # files of a folder that are looked at to tell its layout


def read_bag(
    path: Path | str, layout: str | None = None, *, slide: str | None = None, allow_pickle: bool = False
) -> Bag:
    """Reads the bag of one slide, in any known layout.

    Args:
        path: a feature file, the features of one encoder in it, or a folder that holds those of exactly one slide.
        layout: name of the layout (``mil-zoo data --help`` lists them); None to tell it from the path.
        slide: which slide, where a file holds several (bag tables, pickles, slide embeddings).
        allow_pickle: run whatever code a pickle holds; only for files of one's own.

    Returns:
        The bag, whose ``layout`` and ``geometry`` say how it was read; features float32 ``[N, D]``, coordinates and
        patch size in level-0 pixels unless ``unit`` says otherwise.

    Raises:
        InputError: nothing is there, the layout is unknown or does not fit, or the file is damaged.
    """
    path = as_path(path, "path", "a feature file or the folder of one")
    if path.is_dir():
        files = [(file, found.layout) for found in find_features(path, layout) for file in found.files.values()]
        if len(files) != 1:
            raise InputError(f"{path} holds {len(files)} feature files; name one of them, for instance {files[0][0]}")
        path, layout = files[0]
    elif not path.exists():
        raise InputError(f"{path}: no such file")
    found = layout_of(path, layout)
    with boundary(path):
        if isinstance(found, TableLayout):
            return only(found.read_all(path, allow_pickle), path, slide)
        return found.read(path)


def layout_of(path: Path, layout: str | None = None) -> Layout:
    """The layout of a feature file: the one called ``layout``, or the one that recognises it."""
    if layout is not None:
        return LAYOUTS.get(layout)
    found = _recognise([path])
    if found is None:
        raise InputError(
            f"{path} is in no known layout ({', '.join(LAYOUTS)}); pass --layout NAME, or write it as one of them"
        )
    return found[0]


def find_features(root: Path, layout: str | None = None) -> list[FeatureSet]:
    """Every set of features below a folder. Names are listed and a few heads read, no features.

    Args:
        root: searched with its sub-folders; also a feature file that is a folder, or a place in one.
        layout: look for this layout only; None for all.

    Raises:
        InputError: there is none, or one of two files for the same slide would have to be guessed.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; pass the folder that holds the feature files")
    if _around(Path(os.path.abspath(root))):
        root = Path(os.path.abspath(root))  # a place in a file that is a folder is told by the folders above it
    groups: dict[tuple[str, Path, str], dict[str, Path]] = {}
    home: dict[Path, Path] = {}  # the folder in which the file of some features lies
    empty: list[tuple[Layout, Path]] = []
    for found, path in _feature_files(root, layout):
        parts = found.parts(path)
        empty += [] if parts else [(found, path)]
        for part in (part for part in parts if part.is_relative_to(root)):
            slides = groups.setdefault((found.name, found.group(part), found.encoder(part)), {})
            slide = found.slide_id(part)
            previous, home[part] = slides.setdefault(slide, part), path.parent
            if home[previous] == path.parent and previous != part:
                other = part.relative_to(path.parent)
                raise InputError(f"slide {slide!r} has two feature files, {previous} and {other}; keep one of them")
    if not groups:
        clam = LAYOUTS.get("clam")
        empty += [(clam, path) for files in _folders(root) for path in files if path.suffix.lower() == ".h5"]
        for found, path in empty:
            found.shape(path)  # says what this file holds instead of features
        raise InputError(
            f"{root}: no feature files below it (layouts: {', '.join(LAYOUTS)}); pass the folder that holds them"
        )
    return _named(root, groups)


def choose_features(found: Sequence[FeatureSet], name: str | None, folder: Path) -> FeatureSet:
    """The set of features called ``name``, or the only one; of patches, where embeddings of slides lie beside them.

    Raises:
        InputError: there is none of that name, or several and none was named.
    """
    names = [features.name for features in found]
    if name is None:
        found = [features for features in found if not LAYOUTS.get(features.layout).of_slides] or found
    if name is None and len(found) > 1:
        raise InputError(f"{folder} holds {len(names)} sets of features; choose with --features: {', '.join(names)}")
    if name is not None and name not in names:
        raise InputError(f"{folder} holds no features called {name!r}{did_you_mean(name, names)}")
    return found[0 if name is None else names.index(name)]


def _feature_files(root: Path, layout: str | None) -> Iterator[tuple[Layout, Path]]:
    """The feature files below a folder, of one layout or of all."""
    for files in _folders(root):
        found = LAYOUTS.get(layout) if layout else _layout_of_folder(files)
        if found is None:
            continue
        for path in files:
            if path.suffix.lower() in found.suffixes and (found.uniform or _claim(found, path)):
                yield found, path


def _named(root: Path, groups: Mapping[tuple[str, Path, str], Mapping[str, Path]]) -> list[FeatureSet]:
    found = [
        FeatureSet(layout, encoder or "features", folder if folder.is_relative_to(root) else root, slides)
        for (layout, folder, encoder), slides in sorted(groups.items(), key=lambda item: (item[0][1], *item[0]))
    ]
    found = _together(found)
    names = [features.name for features in found]
    # The same encoder at two magnifications: the folders above tell them apart.
    return [
        features
        if names.count(features.name) == 1
        else replace(
            features,
            name=features.folder.name if features.folder == root else str(features.folder.relative_to(root)),
        )
        for features in found
    ]


def _together(found: Sequence[FeatureSet]) -> list[FeatureSet]:
    """The sets, with folders of one encoder as one: a folder a class or a part, such as training/normal.

    Where a layout's folders do not name the encoder, slides tell: classes share none, encoders share them all.
    """
    alone: list[FeatureSet] = []
    alike: dict[tuple[str, ...], list[FeatureSet]] = {}
    for features in found:
        source = LAYOUTS.get(features.layout).source(next(iter(features.files.values())))
        suffixes = {path.suffix.lower() for path in features.files.values()}
        key = None if source is None else (features.layout, source, *sorted(suffixes))
        (alone if key is None else alike.setdefault(key, [])).append(features)
    for sets in alike.values():
        for folder in _above([features.folder for features in sets]) if len(sets) > 1 else ():
            inside = [each for each in sets if each.folder.is_relative_to(folder)]
            files = {slide: path for each in inside for slide, path in each.files.items()}
            if len(inside) > 1 and len(files) == sum(len(each.files) for each in inside):
                names = {each.name for each in inside}
                name = names.pop() if len(names) == 1 else folder.name
                sets[:] = [each for each in sets if each not in inside]
                sets.append(FeatureSet(inside[0].layout, name, folder, files))
        alone += sets
    return sorted(alone, key=lambda features: (features.folder, features.layout))


def _above(folders: Sequence[Path]) -> list[Path]:
    """The folders that hold some of ``folders``, up to the one that holds all; the deepest first."""
    top = Path(os.path.commonpath(folders))
    inside = {above for folder in folders for above in (folder, *folder.parents) if above.is_relative_to(top)}
    return sorted(inside, key=lambda folder: (-len(folder.parts), folder))


def _folders(root: Path) -> Iterator[list[Path]]:
    """The feature files of each folder, by suffix, sorted by name; one that is a folder itself is not entered."""
    known = {suffix for name in LAYOUTS for suffix in LAYOUTS.get(name).suffixes}
    of_folders = _suffixes_of_folders()
    if above := _around(root):
        yield [above]
        return
    seen = {os.path.realpath(root)}
    for folder, below, names in os.walk(root, followlinks=True):
        files = [name for name in names if Path(name).suffix.lower() in known - of_folders]
        files += [name for name in below if Path(name).suffix.lower() in of_folders]
        below[:] = sorted(
            name for name in below if name not in files and not name.startswith(".") and _is_new(folder, name, seen)
        )
        by_suffix: dict[str, list[Path]] = {}
        for name in sorted(name for name in files if not name.startswith(".")):
            by_suffix.setdefault(Path(name).suffix.lower(), []).append(Path(folder) / name)
        yield from by_suffix.values()


def _suffixes_of_folders() -> set[str]:
    return {suffix for name in LAYOUTS for suffix in LAYOUTS.get(name).folders}


def _around(place: Path) -> Path | None:
    """The feature file that is a folder and holds this place, or is it."""
    of_folders = _suffixes_of_folders()
    above = (above for above in (place, *place.parents) if above.suffix.lower() in of_folders and _recognise([above]))
    return next(above, None)


def _is_new(folder: str, name: str, seen: set[str]) -> bool:
    """Whether a sub-folder was not walked yet: links are followed, and may lead back up."""
    place = os.path.realpath(os.path.join(folder, name))
    if place in seen:
        return False
    seen.add(place)
    return True


def _layout_of_folder(files: Sequence[Path]) -> Layout | None:
    """The layout of the files of one suffix in a folder; None where they hold no bags."""
    found = _recognise(files)
    return found[0] if found is not None and found[1].bags else None


def _claim(layout: Layout, path: Path) -> Claim | None:
    """What a layout says of a file; nothing of one that it cannot even look at."""
    if path.suffix.lower() not in layout.suffixes:
        return None
    try:
        refuse_pipe(path)
        return layout.claim(path)
    except Exception:  # a damaged file can raise anything; whoever reads it says what is wrong with it
        return None


def _recognise(files: Sequence[Path]) -> tuple[Layout, Claim] | None:
    """The layout that is surest of the first of some files, and what it says; None where none knows them."""
    surest: list[tuple[Claim, Layout, Path]] = []
    for path in files[:_ASKED]:
        for layout in (LAYOUTS.get(name) for name in LAYOUTS):
            claim = _claim(layout, path)
            if claim is not None:
                surest.append((claim, layout, path))
        if any(claim.sure > Sure.SUFFIX and claim.bags for claim, _, _ in surest):
            break  # the others are read where this one tells nothing, because it is damaged for instance
    if not surest:
        return None
    best = max(claim.sure for claim, _, _ in surest)
    first, *others = [each for each in surest if each[0].sure == best]
    for claim, layout, path in others:
        if layout is not first[1]:
            raise InputError(
                f"{path} looks like {first[1].name} ({first[0].why}) and like {layout.name} ({claim.why}); say which "
                f"with --layout {first[1].name} or --layout {layout.name}"
            )
    return first[1], first[0]
