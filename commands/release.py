"""Make a release in this checkout: versions, commit, tag and notes. docs/releasing.md says what a person does."""

import re
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import UserError
from pipeline.git import git

CI_PASSED = Path(".dvc/tmp/ci-passed")  # .ci/run writes the commit that passed
VERSIONS = {  # where a version is, for a regular expression that has it as its second group
    Path("CITATION.cff"): r"(^version: )(.*)()$",
    Path("pyproject.toml"): r'(^version = ")(.*)(")$',
    Path("docker/Dockerfile"): r'(org\.opencontainers\.image\.version=")(.*)(")',
}


def release(version: str) -> str:
    """Commit and tag `version`. Returns the release notes. Raises UserError, and changes nothing, where it must not."""
    tag, head = f"v{version}", git("rev-parse", "HEAD")
    previous = git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", default="")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise UserError(f"VERSION={version} is no version. Use three numbers, such as 1.2.0.")
    if previous and _numbers(version) <= _numbers(previous.removeprefix("v")):
        raise UserError(f"VERSION={version} is not newer than {previous}. Choose a higher version.")
    if (branch := git("rev-parse", "--abbrev-ref", "HEAD")) != "main":
        raise UserError(f"A release is made on the branch main, and this is {branch}. Run `git switch main`.")
    if git("status", "--porcelain", "--untracked-files=normal"):
        raise UserError("The working tree has changes. Commit them, or put them away with `git stash -u`.")
    if not CI_PASSED.exists() or CI_PASSED.read_text(encoding="utf-8").strip() != head:
        raise UserError(f"The tests have not passed on {head[:12]}. Run `.ci/run`, which takes about an hour.")
    commits = git("log", "--no-merges", "--format=- %s", f"{previous}..HEAD" if previous else "HEAD")
    notes = f"Seven Ways {version}\n\n{commits}\n"
    try:
        for path, pattern in VERSIONS.items():
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(pattern, rf"\g<1>{version}\g<3>", text, flags=re.MULTILINE), encoding="utf-8")
        citation = Path("CITATION.cff").read_text(encoding="utf-8")
        citation = re.sub(r"^date-released: .*\n", "", citation, flags=re.MULTILINE)
        citation = f"{citation}date-released: {datetime.now(UTC):%Y-%m-%d}\n"
        Path("CITATION.cff").write_text(citation, encoding="utf-8")
        git("commit", "--all", "--quiet", f"--message=Release {version}")
        git("tag", "--annotate", "--cleanup=verbatim", f"--message={notes}", tag)
    except BaseException:
        git("reset", "--quiet", "--hard", head)
        raise
    return notes


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
