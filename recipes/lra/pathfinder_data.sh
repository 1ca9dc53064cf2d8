# How the scripts of Pathfinder and Path-X come by their images; they source this file after run.sh.
#
# A script sets BENCHMARK (as prepare_pathfinder has it) and RESOLUTION, and for its demo DEMO_SIDE,
# DEMO_IMAGES (the folder that the generator makes) and DEMO_OPTIONS (of the generator).

GENERATE=megalodon_tasks.recipes.lra.pathfinder.generator
PREPARE=megalodon_tasks.recipes.lra.pathfinder.prepare

prepare_data() {
    if ((DEMO)); then
        start_demo
        run_python "$GENERATE" "$DATA_DIR/demo/raw" --resolution "$DEMO_SIDE" "${DEMO_OPTIONS[@]}"
        run_python "$PREPARE" "$DATA_DIR/demo/raw" "$PREPARED" --benchmark "$BENCHMARK" \
            --side "$DEMO_SIDE" --images "$DEMO_IMAGES"
    elif ! find_prepared; then
        local source=$DATA_DIR
        if ! has_images "$DATA_DIR"; then
            source=$DATA_DIR/raw
            run_python "$GENERATE" "$source" --resolution "$RESOLUTION"
        fi
        run_python "$PREPARE" "$source" "$PREPARED" --benchmark "$BENCHMARK"
    fi
}

# has_images FOLDER: the release, a folder of it, or Mega's files; what was generated here is in raw/
has_images() {
    local below
    for below in lra_release curv_contour_length_14 metadata input pathfinder path-x lra; do
        [[ -d $1/$below ]] && return 0
    done
    [[ -d $1 ]] || return 1
    local found
    found=$(find "$1" -maxdepth 6 \( -path "$1/raw" -o -name imgs \) -prune -o \
        -type d -path "*/pathfinder$RESOLUTION/curv_contour_length_14" -print -quit)
    [[ -n $found ]]
}
