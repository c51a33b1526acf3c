use super::*;
use crate::containers::attempt::{AttemptRecord, ExitReason, Started};

const NOW: i64 = 1_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn wanted(lifecycle: Lifecycle, restart: Restart) -> Wanted {
    let container = |name: &str| WantedContainer {
        name: name.into(),
        restart,
        sidecar: false,
        runnable: true,
        image: None,
    };
    Wanted { lifecycle, volumes: vec!["data".into()], init: vec![], containers: vec![container("app")] }
}

fn attempt(container: &str, number: u32, crashes: u32, state: AttemptState) -> Attempt {
    let record = AttemptRecord {
        namespace: "ns".into(),
        pod: "pod".into(),
        uid: "uid".into(),
        container: container.into(),
        number,
        crashes,
        grace: 30,
        boot_id: "boot".into(),
        runtime: "/usr/sbin/runc".into(),
        state: "/state".into(),
        cgroup: "/orlop/n/uid/app".into(),
        log: "/logs/0.log".into(),
        log_size: 1,
        log_files: 1,
        image: None,
        logs_as_message: false,
    };
    let monitor = matches!(state, AttemptState::Running { .. }).then_some(1);
    Attempt { record, state, monitor, unreleased: false }
}

fn running(stopping: Option<i64>) -> AttemptState {
    let started = Some(Started { pid: 2, at: at(-60) });
    AttemptState::Running { started, stopping: stopping.map(at) }
}

fn exited(code: i32, finished: i64) -> AttemptState {
    AttemptState::Exited(Exit {
        code,
        signal: None,
        reason: ExitReason::Error,
        message: None,
        started: Some(at(finished - 1)),
        finished: at(finished),
    })
}

fn directory(name: &str) -> VolumeDirectory {
    VolumeDirectory { plugin: crate::layout::EMPTY_DIR.into(), name: name.into(), block: false }
}

fn there(attempts: Vec<Attempt>) -> Actual {
    let mut actual = Actual { directory: true, present: vec![directory("data")], ..Actual::default() };
    actual.ready.insert("data".into(), Some(directory("data")));
    for attempt in attempts {
        actual.attempts.entry(attempt.record.container.clone()).or_default().push(attempt);
    }
    actual
}

fn start(container: &str, number: u32, crashes: u32) -> Step {
    Step::Start { container: container.into(), number, crashes }
}

fn stop(grace: i64, delete: bool) -> Lifecycle {
    Lifecycle::Stop { grace: Some(SignedDuration::from_secs(grace)), delete }
}

#[test]
fn a_pod_is_planned_from_nothing_to_nothing() {
    let app = || ("app".to_owned(), 0);
    let (container, number) = app();
    let terminate = Step::Terminate { container: container.clone(), number };
    let kill = Step::Kill { container: container.clone(), number };
    let release = Step::Release { container, number };
    let unreleased = |state| {
        let mut attempt = attempt("app", 0, 0, state);
        attempt.unreleased = true;
        there(vec![attempt])
    };
    let cleaning_up = {
        let mut attempt = attempt("app", 0, 0, exited(1, -1));
        attempt.monitor = Some(1);
        there(vec![attempt])
    };
    let sub_paths = Actual { sub_paths: true, ..there(vec![]) };
    let empty = Actual { directory: true, ..Actual::default() };
    let run = Lifecycle::Run;
    let of = |state| there(vec![attempt("app", 0, 0, state)]);
    type Case = (&'static str, Lifecycle, Restart, Actual, Vec<Step>, Option<i64>);
    let cases: Vec<Case> = vec![
        (
            "volumes come first",
            run.clone(),
            Restart::Always,
            Actual::default(),
            vec![Step::SetUp("data".into())],
            None,
        ),
        ("then containers", run.clone(), Restart::Always, there(vec![]), vec![start("app", 0, 0)], None),
        (
            "an intent is carried out",
            run.clone(),
            Restart::Always,
            of(AttemptState::Prepared),
            vec![start("app", 0, 0)],
            None,
        ),
        ("nothing to do", run.clone(), Restart::Always, of(running(None)), vec![], None),
        (
            "a first failure restarts at once",
            run.clone(),
            Restart::Always,
            of(exited(1, -1)),
            vec![start("app", 1, 1)],
            None,
        ),
        (
            "a good exit restarts too",
            run.clone(),
            Restart::Always,
            of(exited(0, -1)),
            vec![start("app", 1, 1)],
            None,
        ),
        ("not while its monitor cleans up", run.clone(), Restart::Always, cleaning_up.clone(), vec![], None),
        (
            "a left-over is removed",
            run.clone(),
            Restart::Always,
            unreleased(exited(1, -1)),
            vec![release.clone()],
            None,
        ),
        (
            "an unseen end is written down",
            run.clone(),
            Restart::Never,
            of(AttemptState::Lost),
            vec![release.clone()],
            None,
        ),
        (
            "a finished pod gives back",
            run.clone(),
            Restart::OnFailure,
            of(exited(0, -1)),
            vec![Step::TearDown(directory("data"))],
            None,
        ),
        (
            "a failed pod gives back",
            run.clone(),
            Restart::Never,
            of(exited(3, -1)),
            vec![Step::TearDown(directory("data"))],
            None,
        ),
        ("SIGTERM comes first", stop(30, true), Restart::Always, of(running(None)), vec![terminate], None),
        ("then the grace period", stop(30, true), Restart::Always, of(running(Some(-10))), vec![], Some(20)),
        ("then SIGKILL", stop(30, true), Restart::Always, of(running(Some(-30))), vec![kill], Some(1)),
        ("the monitor is waited for", stop(30, true), Restart::Always, cleaning_up, vec![], None),
        (
            "sub-paths go before volumes",
            stop(30, true),
            Restart::Always,
            sub_paths,
            vec![Step::CleanSubPaths],
            None,
        ),
        (
            "volumes go",
            stop(30, true),
            Restart::Always,
            of(exited(143, -1)),
            vec![Step::TearDown(directory("data"))],
            None,
        ),
        ("the directory goes", stop(30, true), Restart::Always, empty.clone(), vec![Step::RemovePod], None),
        ("the object goes", stop(30, true), Restart::Always, Actual::default(), vec![Step::Delete], None),
        ("an orphan has no object", stop(30, false), Restart::Always, Actual::default(), vec![], None),
        ("an orphan is removed", stop(30, false), Restart::Always, empty, vec![Step::RemovePod], None),
        ("a final phase is not run", Lifecycle::Finished, Restart::Always, Actual::default(), vec![], None),
    ];
    for (name, lifecycle, restart, actual, steps, again) in cases {
        let plan = plan(&wanted(lifecycle, restart), &actual, at(0));
        assert_eq!(plan.steps, steps, "{name}");
        assert_eq!(plan.again, again.map(at), "{name}");
    }
}

#[test]
fn restarts_back_off() {
    let delays: Vec<i64> = (0..8)
        .map(|crashes| {
            let AttemptState::Exited(exit) = exited(1, 0) else { unreachable!() };
            restart_at(crashes, &exit).duration_since(at(0)).as_secs()
        })
        .collect();
    assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);

    let wanted = wanted(Lifecycle::Run, Restart::Always);
    let waiting = plan(&wanted, &there(vec![attempt("app", 4, 3, exited(1, -39))]), at(0));
    assert_eq!((waiting.steps, waiting.again), (vec![], Some(at(1))));
    let due = plan(&wanted, &there(vec![attempt("app", 4, 3, exited(1, -40))]), at(0));
    assert_eq!(due.steps, [start("app", 5, 4)]);

    // After ten good minutes the count begins anew.
    let healthy = AttemptState::Exited(Exit { started: Some(at(-700)), ..exit_of(exited(1, -1)) });
    let due = plan(&wanted, &there(vec![attempt("app", 4, 9, healthy)]), at(0));
    assert_eq!(due.steps, [start("app", 5, 1)]);
}

fn exit_of(state: AttemptState) -> Exit {
    match state {
        AttemptState::Exited(exit) => exit,
        _ => unreachable!(),
    }
}

#[test]
fn init_containers_run_one_after_the_other() {
    let mut wanted = wanted(Lifecycle::Run, Restart::Never);
    let init = |name: &str, sidecar| WantedContainer {
        name: name.into(),
        image: None,
        restart: if sidecar { Restart::Always } else { Restart::Never },
        sidecar,
        runnable: true,
    };
    wanted.init = vec![init("first", false), init("beside", true), init("second", false)];
    let first = || attempt("first", 0, 0, exited(0, -5));
    let beside = || attempt("beside", 0, 0, running(None));
    let second = || attempt("second", 0, 0, exited(0, -3));
    let steps = |attempts| plan(&wanted, &there(attempts), at(0)).steps;
    assert_eq!(steps(vec![]), [start("first", 0, 0)]);
    assert_eq!(steps(vec![attempt("first", 0, 0, running(None))]), []);
    assert_eq!(steps(vec![first()]), [start("beside", 0, 0)]);
    assert_eq!(steps(vec![first(), beside()]), [start("second", 0, 0)]);
    assert_eq!(steps(vec![first(), beside(), second()]), [start("app", 0, 0)]);
    let app = || attempt("app", 0, 0, running(None));
    assert_eq!(steps(vec![first(), beside(), second(), app()]), []);
    let fallen = attempt("beside", 0, 0, exited(1, -1));
    assert_eq!(steps(vec![first(), fallen, second(), app()]), [start("beside", 1, 1)]);
    // The pod is over: what ran beside it ends.
    let ended = attempt("app", 0, 0, exited(0, -1));
    let terminate = Step::Terminate { container: "beside".into(), number: 0 };
    assert_eq!(steps(vec![first(), beside(), second(), ended]), [terminate]);
    // A failed one fails the pod.
    let failed = attempt("first", 0, 0, exited(1, -1));
    assert_eq!(steps(vec![failed]), [Step::TearDown(directory("data"))]);
}

#[test]
fn only_the_last_two_attempts_are_kept_and_stale_volumes_refreshed() {
    let wanted = wanted(Lifecycle::Run, Restart::Always);
    let attempts = (0..4)
        .map(|number| attempt("app", number, 0, if number == 3 { running(None) } else { exited(1, -1) }));
    let mut actual = there(attempts.collect());
    let discard = |number| Step::Discard { container: "app".into(), number };
    assert_eq!(plan(&wanted, &actual, at(0)).steps, [discard(0), discard(1)]);
    actual.attempts.clear();
    actual.stale = vec!["data".into()];
    let steps = plan(&wanted, &actual, at(0)).steps;
    assert_eq!(steps, [Step::SetUp("data".into()), start("app", 0, 0)]);
}

#[test]
fn a_new_image_replaces_the_container() {
    for restart in [Restart::Always, Restart::Never] {
        let mut wanted = wanted(Lifecycle::Run, restart);
        wanted.containers[0].image = Some("host:latest".into());
        let with = |state: AttemptState, image: Option<&str>| {
            let mut attempt = attempt("app", 3, 2, state);
            attempt.record.image = image.map(str::to_owned);
            plan(&wanted, &there(vec![attempt]), at(0))
        };
        let (container, number) = ("app".to_owned(), 3);
        let terminate = Step::Terminate { container: container.clone(), number };
        assert_eq!(with(running(None), Some("host")).steps, [terminate]);
        assert_eq!(with(running(None), Some("host:latest")).steps, []);
        assert_eq!(with(running(None), None).steps, [], "an earlier version's record does not tell");
        let start = Step::Start { container, number: 4, crashes: 2 };
        assert_eq!(with(exited(143, 0), Some("host")).steps, [start], "{restart:?}: at once");
    }
}
