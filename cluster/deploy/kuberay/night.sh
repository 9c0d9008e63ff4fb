#!/bin/sh
# Creates the RayJob of a file, or follows the one that still runs, and ends with the exit code of its night.
#   night.sh RAYJOB.yaml
# 75: waiting helps. 2: a person must act. Needs kubectl, in a pod or with a kubeconfig.
set -u
label=app.kubernetes.io/name=nightread
pause=${NIGHTREAD_PAUSE:-10}

say() { echo "nightread: $*" >&2; }

# Prints one field of a RayJob.
field() { kubectl get rayjob "$1" --output "jsonpath={.status.$2}"; }

jobs=$(kubectl get rayjobs --selector "$label" --output 'jsonpath={range .items[*]}{.metadata.name}={.status.jobDeploymentStatus}{"\n"}{end}' 2>&1) || {
    case $jobs in
    *"have a resource type"* | *"no matches for kind"*)
        say "This cluster does not know RayJobs. Install the KubeRay operator (1.6 or newer) with its CRDs, then repeat."
        exit 2 ;;
    *orbidden*)
        say "This account may not look at RayJobs. Apply access.yaml. $jobs"
        exit 2 ;;
    esac
    say "Kubernetes does not answer: $jobs"
    exit 75
}
name=
for job in $jobs; do
    case ${job#*=} in
    Complete | Failed) kubectl delete rayjob "${job%%=*}" --wait=false >/dev/null ;;
    *) name=${job%%=*} ;;
    esac
done
if [ -n "$name" ]; then
    say "Following $name, which still runs."
else
    created=$(kubectl create --filename "$1" --output name 2>&1) || {
        say "The RayJob was not taken: $created"
        case $created in
        *nvalid* | *orbidden* | *validating* | *"unknown field"* | *denied*) exit 2 ;;
        esac
        exit 75
    }
    name=${created##*/}
    say "Started $name."
fi

lost=0
while :; do
    status=$(field "$name" jobDeploymentStatus) && lost=0 || lost=$((lost + 1))
    [ "$lost" -lt 30 ] || { say "Kubernetes no longer answers about $name."; exit 75; }
    case $status in
    Complete) exit 0 ;;
    Failed) break ;;
    esac
    sleep "$pause"
done

message=$(field "$name" message)
reason=$(field "$name" reason)
code=$(echo "$message" | sed -n 's/.*failed with exit code \([0-9][0-9]*\).*/\1/p' | head -n 1)
if [ -n "$code" ] && [ "$code" -ne 0 ]; then
    say "The night ended with exit code $code. See: kubectl describe rayjob $name"
    exit "$code"
fi
say "The night could not be run ($reason). See: kubectl describe rayjob $name"
case $reason in
ValidationFailed) exit 2 ;;
DeadlineExceeded) exit 1 ;;
esac
exit 75
