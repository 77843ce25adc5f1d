use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::oneshot;

use super::*;

struct FlightFixture {
    flights: Flights<&'static str, (), u32>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    starts: Arc<AtomicUsize>,
}

fn fixture() -> FlightFixture {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let flights = Flights::new(Duration::from_secs(600), tasks.clone(), shutdown.clone());
    FlightFixture { flights, shutdown, tasks, starts: Arc::default() }
}

impl FlightFixture {
    fn join(&self, work: impl Future<Output = Result<u32>> + Send + 'static) -> Waiter<(), u32> {
        let starts = Arc::clone(&self.starts);
        self.flights.join("key", (), |_| async move {
            starts.fetch_add(1, Ordering::Relaxed);
            work.await
        })
    }

    fn starts(&self) -> usize {
        self.starts.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_share_one_flight() {
    let f = fixture();
    let (go, wait) = oneshot::channel::<()>();
    let mut first = f.join(async {
        let _ = wait.await;
        Ok(7)
    });
    let mut rest: Vec<_> = (0..99).map(|_| f.join(async { Ok(8) })).collect();
    assert!(!first.joined() && rest.iter().all(Waiter::joined));
    go.send(()).unwrap();
    assert_eq!(first.completed().await, Ok(7));
    for waiter in &mut rest {
        assert_eq!(waiter.completed().await, Ok(7));
    }
    assert_eq!(f.starts(), 1);
    assert_eq!(f.join(async { Ok(9) }).completed().await, Ok(9), "the key is free again");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_does_not_stop_the_work() {
    let f = fixture();
    let (go, wait) = oneshot::channel::<()>();
    let waiter = f.join(async {
        let _ = wait.await;
        Ok(7)
    });
    drop(waiter);
    tokio::time::sleep(Duration::from_secs(300)).await;
    let mut again = f.join(async { Ok(8) });
    assert!(again.joined(), "the retry joins the running flight");
    go.send(()).unwrap();
    assert_eq!(again.completed().await, Ok(7));
    assert_eq!(f.starts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flight_without_a_waiter_is_abandoned_after_the_grace() {
    let f = fixture();
    let (stopped, was_stopped) = oneshot::channel::<()>();
    let waiter = f.join(async move {
        let _held = stopped;
        std::future::pending().await
    });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(f.flights.running().len(), 1, "a caller waits");
    drop(waiter);
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert_eq!(f.flights.running().len(), 1);
    assert!(was_stopped.await.is_err(), "the work was dropped");
    assert_eq!(f.flights.running().len(), 0);
    assert_eq!(f.join(async { Ok(1) }).completed().await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_detached_flight_without_a_waiter_ends_with_its_work_only() {
    let flights = Flights::<_, (), u32>::detached();
    let (go, wait) = oneshot::channel::<()>();
    drop(flights.join("key", (), |_| async {
        let _ = wait.await;
        Ok(7)
    }));
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    let mut again = flights.join("key", (), |_| async { Ok(8) });
    assert!(again.joined());
    go.send(()).unwrap();
    assert_eq!(again.completed().await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_known_starts_no_flight() {
    let flights = Flights::<_, (), u32>::detached();
    let join = |known| flights.join_unless("key", (), || known, |_| async { Ok(8) });
    assert!(matches!(join(Some(7)), Joined::Known(7)));
    assert!(flights.running().is_empty());
    let Joined::Flight(mut waiter) = join(None) else { panic!("nothing was known") };
    assert_eq!(waiter.completed().await, Ok(8));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_remembered_for_a_moment_and_then_retried() {
    let f = fixture();
    let fails = || async { Err(Error::new(ErrorKind::Unavailable, "no route")) };
    assert!(f.join(fails()).completed().await.is_err());
    assert!(f.join(fails()).completed().await.is_err());
    assert_eq!(f.starts(), 1, "remembered");
    tokio::time::sleep(MEMO * 2).await;
    assert_eq!(f.join(async { Ok(1) }).completed().await, Ok(1));
    assert_eq!(f.starts(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_permission_failure_is_never_shared() {
    let f = fixture();
    for _ in 0..2 {
        let denied = async { Err(Error::new(ErrorKind::Denied, "no")) };
        assert!(f.join(denied).completed().await.is_err());
    }
    assert_eq!(f.starts(), 2);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_every_flight_with_an_error_that_is_not_final() {
    let f = fixture();
    let mut waiter = f.join(std::future::pending());
    f.shutdown.cancel();
    let error = waiter.completed().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InProgress);
    f.tasks.close();
    f.tasks.wait().await;
}

#[tokio::test]
async fn a_panic_in_the_work_reaches_every_waiter_and_frees_the_key() {
    let f = fixture();
    let mut waiter = f.join(async { panic!("on purpose") });
    assert_eq!(waiter.completed().await.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(f.join(async { Ok(1) }).completed().await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_failed_flight_is_over_at_once_and_forgotten_later() {
    let f = fixture();
    let mut waiter = f.join(async { Err(Error::new(ErrorKind::NoSpace, "full")) });
    waiter.completed().await.unwrap_err();
    let began = Instant::now();
    f.flights.ended(&"key").await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(f.join(async { Ok(7) }).completed().await.is_err(), "it is remembered");
    waiter.forgotten().await;
    assert!(began.elapsed() >= MEMO);
    assert_eq!(f.join(async { Ok(7) }).completed().await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_end_of_a_flight_does_not_keep_it() {
    let f = fixture();
    let waiter = f.join(std::future::pending());
    let ended = f.flights.ended(&"key");
    tokio::pin!(ended);
    assert!(futures_util::poll!(&mut ended).is_pending());
    drop(waiter);
    ended.await;
    f.flights.ended(&"key").await;
}
