"""Make a release in this checkout: versions, commit, tag and notes. docs/releasing.md lists the steps of a person."""

import re
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import UserError
from pipeline.git import git

CI_PASSED = Path(".dvc/tmp/ci-passed")  # .ci/run writes the commit that passed
CITATION = Path("CITATION.cff")
NUMBERS = re.compile(r"\d+\.\d+\.\d+")
VERSIONS = {  # the files with a version, each with a regular expression whose second group is the version
    CITATION: r"(^version: )(.*)()$",
    Path("pyproject.toml"): r'(^version = ")(.*)(")$',
    Path("docker/Dockerfile"): r'(org\.opencontainers\.image\.version=")(.*)(")',
}


def release(version: str) -> str:
    """Commit and tag `version`. Returns the release notes. Raises UserError, and changes nothing, if a condition is not
    met."""
    tag, head = f"v{version}", git("rev-parse", "HEAD")
    versions = [name for name in git("tag", "--list", "v*").splitlines() if NUMBERS.fullmatch(name.removeprefix("v"))]
    newest = max(versions, key=_numbers, default="")
    if not NUMBERS.fullmatch(version):
        raise UserError(f"VERSION={version} is not a version. Use three numbers, such as 1.2.0.")
    if newest and _numbers(version) <= _numbers(newest):
        raise UserError(f"VERSION={version} is not newer than {newest}. Choose a higher version.")
    if (branch := git("rev-parse", "--abbrev-ref", "HEAD")) != "main":
        raise UserError(f"A release is made on the branch main, and this is {branch}. Run `git switch main`.")
    if git("status", "--porcelain", "--untracked-files=normal"):
        raise UserError("The working tree has changes. Commit them, or put them away with `git stash -u`.")
    if not CI_PASSED.exists() or CI_PASSED.read_text(encoding="utf-8").strip() != head:
        raise UserError(f"The tests have not passed on {head[:12]}. Run `.ci/run`, which takes about an hour.")
    if not git("var", "GIT_COMMITTER_IDENT", default=""):
        raise UserError("Git does not know who you are. Set user.name and user.email with `git config`.")
    texts = {path: _with_version(path, version) for path in VERSIONS}
    citation = re.sub(r"^date-released: .*\n", "", texts[CITATION], flags=re.MULTILINE).rstrip("\n")
    texts[CITATION] = f"{citation}\ndate-released: {datetime.now(UTC):%Y-%m-%d}\n"
    commits = git("log", "--no-merges", "--format=- %s", f"{newest}..HEAD" if newest else "HEAD")
    notes = f"Seven Ways {version}\n\n{commits}\n"
    try:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        git("commit", "--all", "--quiet", f"--message=Release {version}")
        git("tag", "--annotate", "--cleanup=verbatim", f"--message={notes}", tag)
    except BaseException:
        git("reset", "--quiet", "--hard", head)
        git("tag", "--delete", tag, default="")
        raise
    return notes


def _with_version(path: Path, version: str) -> str:
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(VERSIONS[path], rf"\g<1>{version}\g<3>", text, flags=re.MULTILINE)
    if not count:
        raise UserError(f"{path} names no version. Restore the line: `git log -p {path}` shows it.")
    return changed


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.removeprefix("v").split(".")]
