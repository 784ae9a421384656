"""Saved states by id. A client's id is compared with what is there, and never becomes a path."""

import re
import secrets
from pathlib import Path

from longlive_trt.serving.live.recipe import SavedVideo
from longlive_trt.serving.problems import ProblemError

_ID = re.compile(r"[0-9a-f]{32}")
_SUFFIX = ".state"


class States:
    def __init__(self, folder: Path, *, most: int, most_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder, self._most, self._most_bytes = folder, most, most_bytes

    def new_path(self) -> Path:
        return self._folder / f"{secrets.token_hex(16)}{_SUFFIX}"

    def keep(self, saved: SavedVideo) -> str:
        """Its id. The oldest go where there are too many."""
        saved.write()
        self._tidy(saved.path)
        return saved.path.stem

    def find(self, state_id: str) -> SavedVideo:
        known = {path.stem: path for path in self._all()}
        path = known.get(state_id) if _ID.fullmatch(state_id) else None
        if path is None:
            raise ProblemError("not_found", "There is no such saved state here, or it was too old.")
        return SavedVideo.read(path)

    def _all(self) -> list[Path]:
        paths = [path for path in self._folder.glob(f"*{_SUFFIX}") if _ID.fullmatch(path.stem)]
        whole = [path for path in paths if path.with_suffix(".json").is_file()]
        return sorted(whole, key=lambda path: path.stat().st_mtime)

    def _tidy(self, newest: Path) -> None:
        paths = self._all()
        total = sum(path.stat().st_size for path in paths)
        while paths and (len(paths) > self._most or total > self._most_bytes):
            oldest = paths.pop(0)
            if oldest == newest:
                break
            total -= oldest.stat().st_size
            oldest.with_suffix(".json").unlink(missing_ok=True)
            oldest.unlink(missing_ok=True)
