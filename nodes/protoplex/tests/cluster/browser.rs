//! The page in a real browser: a person drops a file and sees its progress bar move.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use protoplex_testkit::ports::Port;
use protoplex_testkit::until;
use thirtyfour::prelude::*;

use crate::{noise, start};

/// Large enough that the bar is seen on its way.
const FILE_BYTES: usize = 96 << 20;

struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_dropped_file_shows_its_progress_and_what_was_stored() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cluster = start();
    let port = Port::take();
    let driver = Command::new("chromedriver")
        .arg(format!("--port={}", port.number()))
        .stdout(Stdio::null())
        .spawn()
        .expect("chromedriver is installed");
    let _driver = Driver(driver);
    until("chromedriver listens", || std::net::TcpStream::connect(port.address()).ok());

    let file = cluster.folder().join("holiday.bin");
    std::fs::write(&file, noise(42, FILE_BYTES)).unwrap();
    let screenshot = std::env::var_os("PROTOPLEX_SCREENSHOTS").map(std::path::PathBuf::from);
    runtime.block_on(async {
        let browser =
            WebDriver::new(format!("http://{}", port.address()), capabilities(&cluster)).await.unwrap();
        let told = drop_file(&browser, &cluster, &file, screenshot.as_deref()).await;
        browser.quit().await.unwrap();
        told.unwrap();
    });
}

fn capabilities(cluster: &protoplex_testkit::cluster::Cluster) -> thirtyfour::ChromeCapabilities {
    let mut capabilities = DesiredCapabilities::chrome();
    let profile = format!("--user-data-dir={}", cluster.folder().join("profile").display());
    for argument in [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=900,760",
        &profile,
    ] {
        capabilities.add_arg(argument).unwrap();
    }
    capabilities
}

async fn drop_file(
    browser: &WebDriver,
    cluster: &protoplex_testkit::cluster::Cluster,
    file: &std::path::Path,
    screenshots: Option<&std::path::Path>,
) -> WebDriverResult<()> {
    browser.goto(format!("{}/#token={}", cluster.http(), cluster.token())).await?;
    shoot(browser, screenshots, "page.png").await?;
    browser.find(By::Id("file")).await?.send_keys(file.to_str().unwrap()).await?;

    let bar = browser.query(By::Css("#uploads progress")).first().await?;
    let mut seen = Vec::new();
    let state = browser.find(By::Css("#uploads .state")).await?;
    let item = browser.find(By::Css("#uploads li")).await?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let classes = item.class_name().await?.unwrap_or_default();
        assert!(!classes.contains("failed"), "{}", state.text().await?);
        if classes.contains("done") {
            break;
        }
        let value: f64 = bar.prop("value").await?.unwrap_or_default().parse().unwrap_or_default();
        if value > 0.0 && value < 1.0 && seen.last() != Some(&value) {
            if seen.is_empty() {
                shoot(browser, screenshots, "uploading.png").await?;
            }
            seen.push(value);
        }
        assert!(tokio::time::Instant::now() < deadline, "the upload does not end: {}", state.text().await?);
    }
    shoot(browser, screenshots, "stored.png").await?;
    assert!(seen.len() >= 3, "the bar was seen at {seen:?}");
    assert!(seen.is_sorted(), "it only grows: {seen:?}");
    assert!(state.text().await?.starts_with("stored"));

    let link = browser.find(By::Css("#uploads .facts a")).await?;
    assert!(link.attr("href").await?.unwrap_or_default().ends_with("/files/holiday.bin"));
    let got = crate::get(&format!("{}/files/holiday.bin", cluster.http()), &[]);
    assert!(got.body == noise(42, FILE_BYTES), "other bytes came back");
    drop_many(browser, cluster).await
}

/// More files than a browser opens connections to one host.
async fn drop_many(
    browser: &WebDriver,
    cluster: &protoplex_testkit::cluster::Cluster,
) -> WebDriverResult<()> {
    let files = (0..8).map(|n| {
        let file = cluster.folder().join(format!("one-of-{n}.bin"));
        std::fs::write(&file, noise(n, 100_000)).unwrap();
        file.to_str().unwrap().to_owned()
    });
    let files = files.collect::<Vec<_>>().join("\n");
    browser.find(By::Id("file")).await?.send_keys(files).await?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while browser.find_all(By::Css("#uploads li.done")).await?.len() < 9 {
        assert!(tokio::time::Instant::now() < deadline, "not all files are stored");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn shoot(browser: &WebDriver, folder: Option<&std::path::Path>, name: &str) -> WebDriverResult<()> {
    match folder {
        Some(folder) => browser.screenshot(&folder.join(name)).await,
        None => Ok(()),
    }
}
