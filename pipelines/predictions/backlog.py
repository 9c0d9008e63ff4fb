"""What a promotion makes to be scored again: images that the table knows by other versions of the model only."""

from __future__ import annotations

from typing import Final

from pipelines.errors import IMAGE_ERRORS
from pipelines.predictions.query import connect

# The newest answer of each image tells the state that its file is in, as far as the table knows. Names are compared by
# their hashes, which for a count is sure enough, and takes half the time and memory of comparing texts.
_COUNT: Final = """
    WITH answered AS (
        SELECT hash(image_uri) AS image, hash(image_version) AS state, model_id, scored_at FROM rows
        WHERE model_name = $model_name AND (status = 'scored' OR list_contains($codes, error_code))
    )
    SELECT count(*) FROM (SELECT image, arg_max(state, scored_at) AS state FROM answered GROUP BY image)
    ANTI JOIN (SELECT image, state FROM answered WHERE model_id = $model_id) USING (image, state)"""


def count_to_rescore(results: str, model_name: str, model_id: str) -> int:
    """Count the images that a night with one version of a model would score again because of the model alone.

    Those are the images that some version of the model has scored, or failed at for a reason that lay in them, and
    that this version has not in the state in which they were seen last. The archive is not asked: an image that is
    gone from it is counted, one that is new or has changed since is not.

    Args:
        results: The results folder.
        model_name: The model's name in its registry.
        model_id: The version.

    Raises:
        UsageError: If there are no results, or the count needs more memory than it may take.
        TryLater: If storage does not answer.
    """
    codes = [code for code, kind in IMAGE_ERRORS.items() if kind.lies_in_image]
    with connect(results, with_runs=False) as connection:
        answer = connection.execute(_COUNT, {"model_name": model_name, "model_id": model_id, "codes": codes})
        return int(answer.fetchall()[0][0])
