"""What the thread that makes blocks is asked for, and whether one thing more would be in time."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """Work that waits: it takes so long, and is wanted by then."""

    due_s: float
    takes_s: float


@dataclass(frozen=True)
class Load:
    """Times are those of one monotonic clock."""

    free_s: float
    """When what runs will be done."""
    claims: tuple[Claim, ...] = ()
    """Of others."""

    def has_room_for(self, claim: Claim) -> bool:
        """Whether it would be done in time, and make nothing else late; first due, first made."""
        before, after = self._late(self.claims), self._late((*self.claims, claim))
        return claim not in after and after == before

    def _late(self, claims: Sequence[Claim]) -> list[Claim]:
        done_s, late = self.free_s, []
        for claim in sorted(claims, key=lambda claim: claim.due_s):
            done_s += claim.takes_s
            if done_s > claim.due_s:
                late.append(claim)
        return late
